package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * What of a decoder is no MoE layer, for TornadoVM. A step is {@code header[0]} = M tokens of one sequence; {@code
 * step} has the position of the first, then the tokens. Weights are int8, four to an int, a scale a row.
 */
final class DeviceKernels {
    /** Work-items of a group, of every kernel. */
    static final int GROUP = 256;

    /** Lanes that share a row of weights, of {@link #project}; a group has eight. */
    static final int LANES = 32;

    /** Tokens and rows of a group of {@link #projectTile}. */
    static final int TILE = 64;

    private static final int DEPTH = 16;

    private DeviceKernels() {}

    /** {@code hidden[t]} = the embedding of token t. Grid: a work-item for four values. */
    static void embed(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            IntArray weights,
            FloatArray scales,
            FloatArray hidden,
            int cols,
            int ints) {
        int t = ctx.globalIdx / ints;
        int i = ctx.globalIdx - t * ints;
        if (t < header.get(0)) {
            int token = step.get(1 + t);
            int packed = weights.get(token * ints + i);
            float scale = scales.get(token);
            for (int b = 0; b < 4; b++) {
                if (4 * i + b < cols) {
                    hidden.set(t * cols + 4 * i + b, ((packed << (24 - 8 * b)) >> 24) * scale);
                }
            }
        }
    }

    /**
     * A row of each token over its root mean square, times gains: {@code width} values from {@code from} on; a token's
     * values begin at {@code stride} times its number. With {@code adding} 1 what a layer gave is added to them first,
     * and stays added. Grid: a group a token.
     */
    static void rmsNorm(
            KernelContext ctx,
            IntArray header,
            FloatArray values,
            FloatArray added,
            FloatArray gains,
            FloatArray normed,
            int adding,
            int stride,
            int from,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int t = ctx.groupIdx;
        int at = t * stride + from;
        int end = t < header.get(0) ? width : 0;
        float sum = 0.0f;
        for (int i = lane; i < end; i += GROUP) {
            float value = values.get(at + i);
            if (adding == 1) {
                value = value + added.get(at + i);
                values.set(at + i, value);
            }
            sum += value * value;
        }
        sums[lane] = sum;
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lane] = sums[lane] + sums[lane + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        for (int i = lane; i < end; i += GROUP) {
            normed.set(at + i, values.get(at + i) * factor * gains.get(i));
        }
    }

    /**
     * {@code y[t][n] = scales[n] · Σ x[t][k] · w[n][k]}, added to what is there with {@code adding} 1; with {@code
     * last} 1 for the last token alone. For few tokens: {@value #LANES} lanes share a row of weights and read it once a
     * token, 128 bytes at a time, four reads on their way at once. Grid: a group for eight rows of a token.
     */
    static void project(
            KernelContext ctx,
            IntArray header,
            FloatArray x,
            IntArray weights,
            FloatArray scales,
            FloatArray y,
            int rows,
            int cols,
            int ints,
            int adding,
            int last) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int groups = (rows + GROUP / LANES - 1) / (GROUP / LANES);
        int t = ctx.groupIdx / groups;
        int row = (ctx.groupIdx - t * groups) * (GROUP / LANES) + lid / LANES;
        int active = t < header.get(0) ? 1 : 0;
        int source = t;
        if (last == 1) {
            active = t == 0 ? 1 : 0;
            source = header.get(0) - 1;
        }
        int own = row < rows ? row : rows - 1;
        int at = own * ints;
        int from = source * cols;
        int end = active * (cols / 4);
        float s0 = 0.0f;
        float s1 = 0.0f;
        float s2 = 0.0f;
        float s3 = 0.0f;
        int k = lane;
        for (; k + 3 * LANES < end; k += 4 * LANES) {
            int w0 = weights.get(at + k);
            int w1 = weights.get(at + k + LANES);
            int w2 = weights.get(at + k + 2 * LANES);
            int w3 = weights.get(at + k + 3 * LANES);
            int c = from + 4 * k;
            s0 += x.get(c) * ((w0 << 24) >> 24)
                    + x.get(c + 1) * ((w0 << 16) >> 24)
                    + x.get(c + 2) * ((w0 << 8) >> 24)
                    + x.get(c + 3) * (w0 >> 24);
            c += 4 * LANES;
            s1 += x.get(c) * ((w1 << 24) >> 24)
                    + x.get(c + 1) * ((w1 << 16) >> 24)
                    + x.get(c + 2) * ((w1 << 8) >> 24)
                    + x.get(c + 3) * (w1 >> 24);
            c += 4 * LANES;
            s2 += x.get(c) * ((w2 << 24) >> 24)
                    + x.get(c + 1) * ((w2 << 16) >> 24)
                    + x.get(c + 2) * ((w2 << 8) >> 24)
                    + x.get(c + 3) * (w2 >> 24);
            c += 4 * LANES;
            s3 += x.get(c) * ((w3 << 24) >> 24)
                    + x.get(c + 1) * ((w3 << 16) >> 24)
                    + x.get(c + 2) * ((w3 << 8) >> 24)
                    + x.get(c + 3) * (w3 >> 24);
        }
        for (; k < end; k += LANES) {
            int w = weights.get(at + k);
            int c = from + 4 * k;
            s0 += x.get(c) * ((w << 24) >> 24)
                    + x.get(c + 1) * ((w << 16) >> 24)
                    + x.get(c + 2) * ((w << 8) >> 24)
                    + x.get(c + 3) * (w >> 24);
        }
        sums[lid] = s0 + s1 + s2 + s3;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && active == 1 && row < rows) {
            float value = sums[lid] * scales.get(row);
            int to = t * rows + row;
            if (adding == 1) {
                value = value + y.get(to);
            }
            y.set(to, value);
        }
    }

    /**
     * The same for many tokens: tiles of {@value #TILE} tokens and as many rows, through local memory; a work-item has
     * four of each. Grid: a group a tile, the rows' tiles first.
     */
    static void projectTile(
            KernelContext ctx,
            IntArray header,
            FloatArray x,
            IntArray weights,
            FloatArray scales,
            FloatArray y,
            int rows,
            int cols,
            int ints,
            int adding) {
        float[] xs = ctx.allocateFloatLocalArray(DEPTH * TILE);
        float[] ws = ctx.allocateFloatLocalArray(DEPTH * TILE);
        int lid = ctx.localIdx;
        int tiles = (rows + TILE - 1) / TILE;
        int t0 = ctx.groupIdx / tiles * TILE;
        int n0 = (ctx.groupIdx - ctx.groupIdx / tiles * tiles) * TILE;
        int tokens = header.get(0);
        int tx = lid % 16;
        int ty = lid / 16;
        // What a work-item brings of each tile: four columns of a token, an int of a row.
        int mine = lid / 4;
        int quarter = lid - mine * 4;
        int token = t0 + mine < tokens ? t0 + mine : tokens - 1;
        int row = n0 + mine < rows ? n0 + mine : rows - 1;
        float s00 = 0.0f;
        float s01 = 0.0f;
        float s02 = 0.0f;
        float s03 = 0.0f;
        float s10 = 0.0f;
        float s11 = 0.0f;
        float s12 = 0.0f;
        float s13 = 0.0f;
        float s20 = 0.0f;
        float s21 = 0.0f;
        float s22 = 0.0f;
        float s23 = 0.0f;
        float s30 = 0.0f;
        float s31 = 0.0f;
        float s32 = 0.0f;
        float s33 = 0.0f;
        int end = t0 < tokens ? cols : 0;
        for (int k = 0; k < end; k += DEPTH) {
            int packed = weights.get(row * ints + k / 4 + quarter);
            int c = token * cols + k + 4 * quarter;
            int to = 4 * quarter * TILE + mine;
            xs[to] = x.get(c);
            xs[to + TILE] = x.get(c + 1);
            xs[to + 2 * TILE] = x.get(c + 2);
            xs[to + 3 * TILE] = x.get(c + 3);
            ws[to] = (packed << 24) >> 24;
            ws[to + TILE] = (packed << 16) >> 24;
            ws[to + 2 * TILE] = (packed << 8) >> 24;
            ws[to + 3 * TILE] = packed >> 24;
            ctx.localBarrier();
            for (int d = 0; d < DEPTH; d++) {
                int a = d * TILE + ty;
                int b = d * TILE + tx;
                float x0 = xs[a];
                float x1 = xs[a + 16];
                float x2 = xs[a + 32];
                float x3 = xs[a + 48];
                float w0 = ws[b];
                float w1 = ws[b + 16];
                float w2 = ws[b + 32];
                float w3 = ws[b + 48];
                s00 += x0 * w0;
                s01 += x0 * w1;
                s02 += x0 * w2;
                s03 += x0 * w3;
                s10 += x1 * w0;
                s11 += x1 * w1;
                s12 += x1 * w2;
                s13 += x1 * w3;
                s20 += x2 * w0;
                s21 += x2 * w1;
                s22 += x2 * w2;
                s23 += x2 * w3;
                s30 += x3 * w0;
                s31 += x3 * w1;
                s32 += x3 * w2;
                s33 += x3 * w3;
            }
            ctx.localBarrier();
        }
        // Back through local memory, a token's 16 sums at a time, so that one piece of code writes them.
        for (int i = 0; i < 16; i++) {
            float sum = s00;
            if (i == 1) {
                sum = s01;
            } else if (i == 2) {
                sum = s02;
            } else if (i == 3) {
                sum = s03;
            } else if (i == 4) {
                sum = s10;
            } else if (i == 5) {
                sum = s11;
            } else if (i == 6) {
                sum = s12;
            } else if (i == 7) {
                sum = s13;
            } else if (i == 8) {
                sum = s20;
            } else if (i == 9) {
                sum = s21;
            } else if (i == 10) {
                sum = s22;
            } else if (i == 11) {
                sum = s23;
            } else if (i == 12) {
                sum = s30;
            } else if (i == 13) {
                sum = s31;
            } else if (i == 14) {
                sum = s32;
            } else if (i == 15) {
                sum = s33;
            }
            int t = t0 + ty + i / 4 * 16;
            int n = n0 + tx + (i - i / 4 * 4) * 16;
            if (t < tokens && n < rows) {
                float value = sum * scales.get(n);
                if (adding == 1) {
                    value = value + y.get(t * rows + n);
                }
                y.set(t * rows + n, value);
            }
        }
    }

    /**
     * Norms each head of queries and keys with {@code norms} 1, rotates them, and puts keys and values into the cache.
     * Grid: a group for each head of queries and of keys of each token.
     *
     * @param qkv [M, (heads + 2 kvHeads) d]; the queries stay in it
     * @param rotations [context, d]: cosines, then sines, of half a head each
     * @param keys [kvHeads, d, context], so that a work-item reads beside its neighbour
     * @param values [kvHeads, context, d]
     */
    static void rotateHeads(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            FloatArray qkv,
            FloatArray queryGains,
            FloatArray keyGains,
            FloatArray rotations,
            FloatArray keys,
            FloatArray values,
            int heads,
            int kvHeads,
            int d,
            int context,
            int norms,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        float[] own = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int t = ctx.groupIdx / (heads + kvHeads);
        int head = ctx.groupIdx - t * (heads + kvHeads);
        int at = (t * (heads + 2 * kvHeads) + head) * d;
        int active = t < header.get(0) && lane < d ? 1 : 0;
        float value = 0.0f;
        if (active == 1) {
            value = qkv.get(at + lane);
        }
        sums[lane] = value * value;
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lane] = sums[lane] + sums[lane + half];
            }
        }
        ctx.localBarrier();
        if (norms == 1 && active == 1) {
            float gain = head < heads ? queryGains.get(lane) : keyGains.get(lane);
            value = value * (1.0f / TornadoMath.sqrt(sums[0] / d + epsilon)) * gain;
        }
        own[lane] = value;
        ctx.localBarrier();
        if (active == 1) {
            int position = step.get(0) + t;
            int half = d / 2;
            int i = lane < half ? lane : lane - half;
            float cosine = rotations.get(position * d + i);
            float sine = rotations.get(position * d + half + i);
            float rotated = lane < half
                    ? own[lane] * cosine - own[lane + half] * sine
                    : own[lane] * cosine + own[lane - half] * sine;
            if (head < heads) {
                qkv.set(at + lane, rotated);
            } else {
                int kvHead = head - heads;
                keys.set((kvHead * d + lane) * context + position, rotated);
                values.set((kvHead * context + position) * d + lane, qkv.get(at + kvHeads * d + lane));
            }
        }
    }

    /**
     * Attention of a head of a token to all positions up to its own, {@value #GROUP} at a time, with a running maximum
     * and sum. {@code d} is a multiple of 8 that divides {@value #GROUP}. Grid: a group for each head of each token.
     */
    static void attend(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            FloatArray qkv,
            FloatArray keys,
            FloatArray values,
            FloatArray attended,
            int heads,
            int kvHeads,
            int d,
            int context) {
        float[] query = ctx.allocateFloatLocalArray(GROUP);
        float[] scores = ctx.allocateFloatLocalArray(GROUP);
        float[] reduced = ctx.allocateFloatLocalArray(GROUP);
        int lane = ctx.localIdx;
        int t = ctx.groupIdx / heads;
        int head = ctx.groupIdx - t * heads;
        int kvHead = head / (heads / kvHeads);
        int active = t < header.get(0) ? 1 : 0;
        int positions = active * (step.get(0) + t + 1);
        if (active == 1 && lane < d) {
            query[lane] = qkv.get((t * (heads + 2 * kvHeads) + head) * d + lane);
        }
        int parts = GROUP / d;
        int part = lane / d;
        int column = lane - part * d;
        float scale = 1.0f / TornadoMath.sqrt((float) d);
        float greatest = -1.0e30f;
        float total = 0.0f;
        float output = 0.0f;
        ctx.localBarrier();
        for (int from = 0; from < positions; from += GROUP) {
            int position = from + lane;
            float score = -1.0e30f;
            if (position < positions) {
                float p0 = 0.0f;
                float p1 = 0.0f;
                float p2 = 0.0f;
                float p3 = 0.0f;
                int key = kvHead * d * context + position;
                for (int i = 0; i < d; i += 8) { // eight reads on their way at once
                    float k0 = keys.get(key);
                    float k1 = keys.get(key + context);
                    float k2 = keys.get(key + 2 * context);
                    float k3 = keys.get(key + 3 * context);
                    float k4 = keys.get(key + 4 * context);
                    float k5 = keys.get(key + 5 * context);
                    float k6 = keys.get(key + 6 * context);
                    float k7 = keys.get(key + 7 * context);
                    p0 += query[i] * k0 + query[i + 4] * k4;
                    p1 += query[i + 1] * k1 + query[i + 5] * k5;
                    p2 += query[i + 2] * k2 + query[i + 6] * k6;
                    p3 += query[i + 3] * k3 + query[i + 7] * k7;
                    key += 8 * context;
                }
                float product = p0 + p1 + p2 + p3;
                score = product * scale;
            }
            reduced[lane] = score;
            for (int half = GROUP / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lane < half) {
                    reduced[lane] = TornadoMath.max(reduced[lane], reduced[lane + half]);
                }
            }
            ctx.localBarrier();
            float most = TornadoMath.max(greatest, reduced[0]);
            float weight = position < positions ? TornadoMath.exp(score - most) : 0.0f;
            ctx.localBarrier();
            scores[lane] = weight;
            reduced[lane] = weight;
            for (int half = GROUP / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lane < half) {
                    reduced[lane] = reduced[lane] + reduced[lane + half];
                }
            }
            ctx.localBarrier();
            float shrink = TornadoMath.exp(greatest - most);
            total = total * shrink + reduced[0];
            output = output * shrink;
            greatest = most;
            int here = positions - from < GROUP ? positions - from : GROUP;
            int value = (kvHead * context + from) * d + column;
            int p = part;
            for (; p + 3 * parts < here; p += 4 * parts) {
                float v0 = values.get(value + p * d);
                float v1 = values.get(value + (p + parts) * d);
                float v2 = values.get(value + (p + 2 * parts) * d);
                float v3 = values.get(value + (p + 3 * parts) * d);
                output += scores[p] * v0
                        + scores[p + parts] * v1
                        + scores[p + 2 * parts] * v2
                        + scores[p + 3 * parts] * v3;
            }
            for (; p < here; p += parts) {
                output += scores[p] * values.get(value + p * d);
            }
            ctx.localBarrier();
        }
        reduced[lane] = output;
        ctx.localBarrier();
        if (active == 1 && part == 0) {
            float sum = 0.0f;
            for (int i = 0; i < parts; i++) {
                sum += reduced[i * d + column];
            }
            attended.set((t * heads + head) * d + column, sum / total);
        }
    }

    /** {@code hidden += output}. Grid: a work-item a value. */
    static void add(KernelContext ctx, IntArray header, FloatArray output, FloatArray hidden, int cols) {
        int i = ctx.globalIdx;
        if (i < header.get(0) * cols) {
            hidden.set(i, hidden.get(i) + output.get(i));
        }
    }

    /** {@code next[0]} = where the greatest logit is, the first of several. Grid: one group. */
    static void choose(KernelContext ctx, FloatArray logits, IntArray next, int count) {
        float[] values = ctx.allocateFloatLocalArray(GROUP);
        int[] places = ctx.allocateIntLocalArray(GROUP);
        int lane = ctx.localIdx;
        float best = -3.0e38f;
        int place = count;
        for (int i = lane; i < count; i += GROUP) {
            float value = logits.get(i);
            if (value > best) {
                best = value;
                place = i;
            }
        }
        values[lane] = best;
        places[lane] = place;
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                float other = values[lane + half];
                int there = places[lane + half];
                if (other > values[lane] || (other == values[lane] && there < places[lane])) {
                    values[lane] = other;
                    places[lane] = there;
                }
            }
        }
        ctx.localBarrier();
        if (lane == 0) {
            next.set(0, places[0]);
        }
    }
}
