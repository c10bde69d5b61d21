package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

/**
 * A decoder's kernels for TornadoVM, except the MoE layers and the matrix products of many tokens. A step is {@code
 * header[0]} = M tokens of one sequence; {@code step} has the position of the first, then the tokens. Weights are int8
 * with one scale per row, four columns packed per int. The activations of a single token are quantised to 24-bit
 * integers, three digits of 8 bits, so that one instruction ({@code dp4a}) computes four products and their sum with a
 * float's precision.
 */
final class DeviceKernels {
    /** Work-items per work-group. */
    static final int GROUP = 256;

    /** Work-items per work-group, for norms over a whole token. */
    static final int WIDE = 1024;

    /** Work-items that share a row of weights in {@link #project}, or that have consecutive positions. */
    static final int LANES = 32;

    /** Rows of weights per work-group in {@link #project}. */
    static final int ROWS = GROUP / LANES;

    /** The number of parts of the positions in {@link #attendPart}. */
    static final int PARTS = 16;

    /** Queries per work-group in {@link #attend}. */
    static final int QUERIES = 16;

    /** Work-groups of {@link #chooseParts}. */
    static final int CHOICES = 128;

    /** The integer for the largest activation of a block: three digits hold up to 127 · 65793. */
    private static final float GREATEST = 127.0f * 65536.0f;

    private DeviceKernels() {}

    /** {@code hidden[t]} = the embedding of token t; sets the pending addition to zero. Grid: one work-item per int. */
    static void embed(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            IntArray weights,
            FloatArray scales,
            FloatArray hidden,
            FloatArray output,
            int cols,
            int ints) {
        int t = ctx.globalIdx / ints;
        int i = ctx.globalIdx - t * ints;
        if (t < header.get(0)) {
            int token = step.get(1 + t);
            int packed = weights.get(token * ints + i);
            float scale = scales.get(token);
            for (int b = 0; b < 4; b++) {
                hidden.set(t * cols + 4 * i + b, ((packed << (24 - 8 * b)) >> 24) * scale);
                output.set(t * cols + 4 * i + b, 0.0f);
            }
        }
    }

    /**
     * Adds a layer's output to the hidden states, and writes each token's RMS norm: hidden states divided by their root
     * mean square, times gains. Grid: one work-group of {@value #WIDE} per token.
     */
    static void addAndNorm(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray output,
            FloatArray gains,
            int gainsFrom,
            FloatArray normed,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(WIDE);
        int lane = ctx.localIdx;
        int t = ctx.groupIdx;
        int at = t * width;
        int end = t < header.get(0) ? width : 0;
        float sum = 0.0f;
        for (int i = lane; i < end; i += WIDE) { // no writes, so that many reads are in flight at once
            float value = hidden.get(at + i) + output.get(at + i);
            sum += value * value;
        }
        sums[lane] = sum;
        for (int half = WIDE / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lane] = sums[lane] + sums[lane + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        for (int i = lane; i < end; i += WIDE) {
            float value = hidden.get(at + i) + output.get(at + i);
            hidden.set(at + i, value);
            normed.set(at + i, value * factor * gains.get(gainsFrom + i));
        }
    }

    /**
     * The same for the last token only, with the norm as digits: [3, width / 4] ints, the lowest digits first, and one
     * scale for each {@value #GROUP} ints. Grid: one work-group of {@value #WIDE}.
     */
    static void addAndNormToDigits(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray output,
            FloatArray gains,
            int gainsFrom,
            IntArray digits,
            FloatArray scales,
            int width,
            float epsilon) {
        float[] sums = ctx.allocateFloatLocalArray(WIDE);
        int lane = ctx.localIdx;
        int at = (header.get(0) - 1) * width;
        int ints = width / 4;
        float sum = 0.0f;
        for (int k = lane; k < ints; k += WIDE) {
            int c = at + 4 * k;
            float h0 = hidden.get(c) + output.get(c);
            float h1 = hidden.get(c + 1) + output.get(c + 1);
            float h2 = hidden.get(c + 2) + output.get(c + 2);
            float h3 = hidden.get(c + 3) + output.get(c + 3);
            hidden.set(c, h0);
            hidden.set(c + 1, h1);
            hidden.set(c + 2, h2);
            hidden.set(c + 3, h3);
            sum += h0 * h0 + h1 * h1 + h2 * h2 + h3 * h3;
        }
        sums[lane] = sum;
        for (int half = WIDE / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lane] = sums[lane] + sums[lane + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f / TornadoMath.sqrt(sums[0] / width + epsilon);
        int own = lane % GROUP;
        for (int from = 0; from < ints; from += WIDE) {
            int k = from + lane;
            float v0 = 0.0f;
            float v1 = 0.0f;
            float v2 = 0.0f;
            float v3 = 0.0f;
            if (k < ints) {
                int c = 4 * k;
                v0 = hidden.get(at + c) * factor * gains.get(gainsFrom + c);
                v1 = hidden.get(at + c + 1) * factor * gains.get(gainsFrom + c + 1);
                v2 = hidden.get(at + c + 2) * factor * gains.get(gainsFrom + c + 2);
                v3 = hidden.get(at + c + 3) * factor * gains.get(gainsFrom + c + 3);
            }
            ctx.localBarrier();
            sums[lane] = greatest(v0, v1, v2, v3);
            for (int half = GROUP / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (own < half) {
                    sums[lane] = TornadoMath.max(sums[lane], sums[lane + half]);
                }
            }
            ctx.localBarrier();
            float most = sums[lane - own];
            if (k < ints) {
                if (own == 0) {
                    scales.set(k / GROUP, most / GREATEST);
                }
                float inverse = most > 0.0f ? GREATEST / most : 0.0f;
                int q0 = round(v0 * inverse);
                int q1 = round(v1 * inverse);
                int q2 = round(v2 * inverse);
                int q3 = round(v3 * inverse);
                digits.set(k, digit(q0, q1, q2, q3, 0));
                digits.set(ints + k, digit(q0 + 128, q1 + 128, q2 + 128, q3 + 128, 8));
                digits.set(2 * ints + k, digit(q0 + 32896, q1 + 32896, q2 + 32896, q3 + 32896, 16));
            }
        }
    }

    private static float greatest(float v0, float v1, float v2, float v3) {
        return TornadoMath.max(
                TornadoMath.max(TornadoMath.abs(v0), TornadoMath.abs(v1)),
                TornadoMath.max(TornadoMath.abs(v2), TornadoMath.abs(v3)));
    }

    private static int round(float value) {
        return (int) TornadoMath.floor(value + 0.5f);
    }

    /** The same digit of four numbers. Digits are -128 to 127, so a negative digit borrows from the next one. */
    private static int digit(int q0, int q1, int q2, int q3, int shift) {
        return q0 >> shift & 0xFF | (q1 >> shift & 0xFF) << 8 | (q2 >> shift & 0xFF) << 16 | q3 >> shift << 24;
    }

    /**
     * A norm over all heads together, in place: {@code width} values from {@code from} on of each token's {@code
     * stride}. Grid: one work-group per token.
     */
    static void normHeads(
            KernelContext ctx,
            IntArray header,
            FloatArray qkv,
            FloatArray gains,
            int gainsFrom,
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
            sum += qkv.get(at + i) * qkv.get(at + i);
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
            qkv.set(at + i, qkv.get(at + i) * factor * gains.get(gainsFrom + i));
        }
    }

    /**
     * {@code y[n] = weightScales[n] · Σ x[k] · w[n][k]} for one token, x in {@code digits}. {@value #LANES} work-items
     * share a row of weights, with eight reads of it in flight at once. Grid: one work-group per {@value #ROWS} rows.
     */
    static void project(
            KernelContext ctx,
            IntArray digits,
            FloatArray scales,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int from = weightsFrom + (row < rows ? row : rows - 1) * ints;
        int twice = 2 * ints;
        float sum = 0.0f;
        int k = lane;
        for (; k + 7 * LANES < ints; k += 8 * LANES) {
            int w0 = weights.get(from + k);
            int w1 = weights.get(from + k + LANES);
            int w2 = weights.get(from + k + 2 * LANES);
            int w3 = weights.get(from + k + 3 * LANES);
            int w4 = weights.get(from + k + 4 * LANES);
            int w5 = weights.get(from + k + 5 * LANES);
            int w6 = weights.get(from + k + 6 * LANES);
            int w7 = weights.get(from + k + 7 * LANES);
            int low = QuantizationUtils.dp4a_packed(w0, digits.get(k), 0);
            int middle = QuantizationUtils.dp4a_packed(w0, digits.get(ints + k), 0);
            int high = QuantizationUtils.dp4a_packed(w0, digits.get(twice + k), 0);
            low = QuantizationUtils.dp4a_packed(w1, digits.get(k + LANES), low);
            middle = QuantizationUtils.dp4a_packed(w1, digits.get(ints + k + LANES), middle);
            high = QuantizationUtils.dp4a_packed(w1, digits.get(twice + k + LANES), high);
            low = QuantizationUtils.dp4a_packed(w2, digits.get(k + 2 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w2, digits.get(ints + k + 2 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w2, digits.get(twice + k + 2 * LANES), high);
            low = QuantizationUtils.dp4a_packed(w3, digits.get(k + 3 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w3, digits.get(ints + k + 3 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w3, digits.get(twice + k + 3 * LANES), high);
            low = QuantizationUtils.dp4a_packed(w4, digits.get(k + 4 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w4, digits.get(ints + k + 4 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w4, digits.get(twice + k + 4 * LANES), high);
            low = QuantizationUtils.dp4a_packed(w5, digits.get(k + 5 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w5, digits.get(ints + k + 5 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w5, digits.get(twice + k + 5 * LANES), high);
            low = QuantizationUtils.dp4a_packed(w6, digits.get(k + 6 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w6, digits.get(ints + k + 6 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w6, digits.get(twice + k + 6 * LANES), high);
            low = QuantizationUtils.dp4a_packed(w7, digits.get(k + 7 * LANES), low);
            middle = QuantizationUtils.dp4a_packed(w7, digits.get(ints + k + 7 * LANES), middle);
            high = QuantizationUtils.dp4a_packed(w7, digits.get(twice + k + 7 * LANES), high);
            sum += scales.get(k / GROUP) * (high * 65536.0f + middle * 256.0f + low);
        }
        for (; k < ints; k += LANES) {
            int w = weights.get(from + k);
            int low = QuantizationUtils.dp4a_packed(w, digits.get(k), 0);
            int middle = QuantizationUtils.dp4a_packed(w, digits.get(ints + k), 0);
            int high = QuantizationUtils.dp4a_packed(w, digits.get(twice + k), 0);
            sum += scales.get(k / GROUP) * (high * 65536.0f + middle * 256.0f + low);
        }
        sums[lid] = sum;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && row < rows) {
            y.set(row, sums[lid] * weightScales.get(weightScalesFrom + row));
        }
    }

    /** Like {@link #project}, with the same bits, for devices without the instruction. */
    static void projectPortable(
            KernelContext ctx,
            IntArray digits,
            FloatArray scales,
            IntArray weights,
            int weightsFrom,
            FloatArray weightScales,
            int weightScalesFrom,
            FloatArray y,
            int rows,
            int ints) {
        float[] sums = ctx.allocateFloatLocalArray(GROUP);
        int lid = ctx.localIdx;
        int lane = lid % LANES;
        int row = ctx.groupIdx * ROWS + lid / LANES;
        int from = weightsFrom + (row < rows ? row : rows - 1) * ints;
        int whole = ints / GROUP * GROUP;
        float sum = 0.0f;
        int low = 0;
        int middle = 0;
        int high = 0;
        for (int k = lane; k < ints; k += LANES) {
            int w = weights.get(from + k);
            low += dot(w, digits.get(k));
            middle += dot(w, digits.get(ints + k));
            high += dot(w, digits.get(2 * ints + k));
            if (k >= whole || k % GROUP >= GROUP - LANES) {
                sum += scales.get(k / GROUP) * (high * 65536.0f + middle * 256.0f + low);
                low = 0;
                middle = 0;
                high = 0;
            }
        }
        sums[lid] = sum;
        for (int half = LANES / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                sums[lid] = sums[lid] + sums[lid + half];
            }
        }
        if (lane == 0 && row < rows) {
            y.set(row, sums[lid] * weightScales.get(weightScalesFrom + row));
        }
    }

    private static int dot(int a, int b) {
        return (a << 24 >> 24) * (b << 24 >> 24)
                + (a << 16 >> 24) * (b << 16 >> 24)
                + (a << 8 >> 24) * (b << 8 >> 24)
                + (a >> 24) * (b >> 24);
    }

    /**
     * If {@code norms} is 1, norms each head of queries and keys. Rotates them, and writes keys and values into the KV
     * cache. Grid: one work-group per query head and key head of each token.
     *
     * @param qkv [M, (heads + 2 kvHeads) d]; the queries stay in it
     * @param rotations [context, d]: cosines, then sines, for half a head each
     * @param gains the queries' gains from {@code gainsFrom} on, then the keys'
     * @param cache for each layer, from {@code keys} on, keys as [kvHeads, d, context], so that neighbouring work-items
     *     read neighbouring values, then values as [kvHeads, context, d]
     */
    static void rotateHeads(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            FloatArray qkv,
            FloatArray gains,
            int gainsFrom,
            FloatArray rotations,
            FloatArray cache,
            int keys,
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
            float gain = gains.get(gainsFrom + lane + (head < heads ? 0 : d));
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
                int values = keys + kvHeads * d * context;
                cache.set(keys + (kvHead * d + lane) * context + position, rotated);
                cache.set(values + (kvHead * context + position) * d + lane, qkv.get(at + kvHeads * d + lane));
            }
        }
    }

    /**
     * Does for one token what {@link #rotateHeads} does for many. Then computes the attention of one of its heads to
     * one of {@value #PARTS} parts of all positions up to its own, {@value #LANES} positions at a time. Neighbouring
     * work-items have neighbouring positions; each of the work-group's eight rows of work-items has an eighth of the
     * head. {@code d} is a multiple of 8 that divides {@value #GROUP}. Grid: one work-group for each part of each head.
     *
     * @param parts [heads, {@value #PARTS}, d + 2]: the sum of the values weighted by {@code exp(score - greatest)},
     *     the greatest score, and the sum of these weights
     */
    static void attendPart(
            KernelContext ctx,
            IntArray step,
            FloatArray qkv,
            FloatArray gains,
            int gainsFrom,
            FloatArray rotations,
            FloatArray cache,
            int keys,
            FloatArray parts,
            int heads,
            int kvHeads,
            int d,
            int context,
            int norms,
            float epsilon) {
        float[] query = ctx.allocateFloatLocalArray(GROUP);
        float[] reduced = ctx.allocateFloatLocalArray(GROUP);
        float[] scores = ctx.allocateFloatLocalArray(LANES);
        float[] own = ctx.allocateFloatLocalArray(GROUP);
        int lid = ctx.localIdx;
        int head = ctx.groupIdx / PARTS;
        int part = ctx.groupIdx - head * PARTS;
        int kvHead = head / (heads / kvHeads);
        int positions = step.get(0) + 1;
        int values = keys + kvHeads * d * context;
        int share = (positions + 8 * PARTS - 1) / (8 * PARTS) * 8;
        int begin = part * share;
        int end = begin + share < positions ? begin + share : positions;
        // Computes the query and, in the part that contains the token itself, its key; all heads write the same key.
        int made = end == positions && begin < end ? 2 : 1;
        for (int which = 0; which < made; which++) {
            int at = which == 0 ? head * d : (heads + kvHead) * d;
            float vector = 0.0f;
            if (lid < d) {
                vector = qkv.get(at + lid);
            }
            reduced[lid] = vector * vector;
            for (int half = GROUP / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lid < half) {
                    reduced[lid] = reduced[lid] + reduced[lid + half];
                }
            }
            ctx.localBarrier();
            if (norms == 1 && lid < d) {
                float gain = gains.get(gainsFrom + lid + (which == 0 ? 0 : d));
                vector = vector * (1.0f / TornadoMath.sqrt(reduced[0] / d + epsilon)) * gain;
            }
            own[lid] = vector;
            ctx.localBarrier();
            if (lid < d) {
                int half = d / 2;
                int i = lid < half ? lid : lid - half;
                float cosine = rotations.get((positions - 1) * d + i);
                float sine = rotations.get((positions - 1) * d + half + i);
                float rotated = lid < half
                        ? own[lid] * cosine - own[lid + half] * sine
                        : own[lid] * cosine + own[lid - half] * sine;
                if (which == 0) {
                    query[lid] = rotated;
                } else {
                    cache.set(keys + (kvHead * d + lid) * context + positions - 1, rotated);
                    cache.set(values + (kvHead * context + positions - 1) * d + lid, qkv.get(at + kvHeads * d + lid));
                }
            }
            ctx.globalBarrier();
        }
        int lane = lid % LANES;
        int eighth = d / 8;
        int i0 = lid / LANES * eighth;
        int rows = GROUP / d;
        int row = lid / d;
        int column = lid - row * d;
        float scale = 1.0f / TornadoMath.sqrt((float) d);
        float greatest = -1.0e30f;
        float total = 0.0f;
        float output = 0.0f;
        for (int from = begin; from < end; from += LANES) {
            int position = from + lane < end ? from + lane : end - 1;
            int key = keys + (kvHead * d + i0) * context + position;
            float product = 0.0f;
            for (int i = 0; i < eighth; i++) {
                product += query[i0 + i] * cache.get(key + i * context);
            }
            reduced[lid] = product;
            ctx.localBarrier();
            if (lid < LANES) {
                float sum = 0.0f;
                for (int i = 0; i < GROUP / LANES; i++) {
                    sum += reduced[i * LANES + lid];
                }
                scores[lid] = from + lid < end ? sum * scale : -1.0e30f;
            }
            ctx.localBarrier();
            float most = greatest;
            for (int i = 0; i < LANES; i++) {
                most = TornadoMath.max(most, scores[i]);
            }
            float shrink = TornadoMath.exp(greatest - most);
            total = total * shrink;
            output = output * shrink;
            greatest = most;
            int here = end - from < LANES ? end - from : LANES;
            int value = values + (kvHead * context + from) * d + column;
            for (int p = row; p < here; p += rows) {
                float weight = TornadoMath.exp(scores[p] - most);
                total += weight;
                output += weight * cache.get(value + p * d);
            }
        }
        ctx.localBarrier();
        reduced[lid] = output;
        query[lid] = total;
        ctx.localBarrier();
        if (row == 0) {
            float sum = 0.0f;
            float weights = 0.0f;
            for (int i = 0; i < rows; i++) {
                sum += reduced[i * d + column];
                weights += query[i * d + column];
            }
            int to = ctx.groupIdx * (d + 2);
            parts.set(to + column, sum);
            if (column == 0) {
                parts.set(to + d, greatest);
                parts.set(to + d + 1, weights);
            }
        }
    }

    /**
     * Combines the parts of {@link #attendPart}, [heads, d], into digits like {@link #addAndNormToDigits}. Grid: one
     * work-group per {@value #GROUP} ints.
     */
    static void attendAll(KernelContext ctx, FloatArray parts, IntArray digits, FloatArray scales, int heads, int d) {
        float[] reduced = ctx.allocateFloatLocalArray(GROUP);
        int lid = ctx.localIdx;
        int k = ctx.globalIdx;
        int ints = heads * d / 4;
        int head = (k < ints ? k : ints - 1) / (d / 4);
        int column = 4 * (k - head * (d / 4));
        int from = head * PARTS * (d + 2);
        float most = -1.0e30f;
        for (int p = 0; p < PARTS; p++) {
            most = TornadoMath.max(most, parts.get(from + p * (d + 2) + d));
        }
        float total = 0.0f;
        float v0 = 0.0f;
        float v1 = 0.0f;
        float v2 = 0.0f;
        float v3 = 0.0f;
        if (k < ints) {
            for (int p = 0; p < PARTS; p++) {
                int at = from + p * (d + 2);
                float weight = TornadoMath.exp(parts.get(at + d) - most);
                total += weight * parts.get(at + d + 1);
                v0 += weight * parts.get(at + column);
                v1 += weight * parts.get(at + column + 1);
                v2 += weight * parts.get(at + column + 2);
                v3 += weight * parts.get(at + column + 3);
            }
            v0 = v0 / total;
            v1 = v1 / total;
            v2 = v2 / total;
            v3 = v3 / total;
        }
        reduced[lid] = greatest(v0, v1, v2, v3);
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lid < half) {
                reduced[lid] = TornadoMath.max(reduced[lid], reduced[lid + half]);
            }
        }
        ctx.localBarrier();
        float top = reduced[0];
        if (k < ints) {
            if (lid == 0) {
                scales.set(ctx.groupIdx, top / GREATEST);
            }
            float inverse = top > 0.0f ? GREATEST / top : 0.0f;
            int q0 = round(v0 * inverse);
            int q1 = round(v1 * inverse);
            int q2 = round(v2 * inverse);
            int q3 = round(v3 * inverse);
            digits.set(k, digit(q0, q1, q2, q3, 0));
            digits.set(ints + k, digit(q0 + 128, q1 + 128, q2 + 128, q3 + 128, 8));
            digits.set(2 * ints + k, digit(q0 + 32896, q1 + 32896, q2 + 32896, q3 + 32896, 16));
        }
    }

    /**
     * Attention of many tokens, each to all positions up to its own, {@value #GROUP} positions at a time, with a
     * running maximum and sum. A work-group has {@value #QUERIES} queries that see the same keys: {@code share} heads
     * of {@value #QUERIES} / {@code share} tokens. A work-item computes the scores of two positions and half of the
     * queries, then a column of all queries' outputs. {@code d} is a multiple of 8 that divides {@value #GROUP}. Grid:
     * one work-group for each share of the heads of that many tokens.
     *
     * @param share a power of two that divides heads by kvHeads, at most {@value #QUERIES}
     */
    static void attend(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            FloatArray qkv,
            FloatArray cache,
            int keys,
            FloatArray attended,
            int heads,
            int kvHeads,
            int d,
            int context,
            int share) {
        float[] query = ctx.allocateFloatLocalArray(QUERIES * GROUP);
        float[] scores = ctx.allocateFloatLocalArray(QUERIES * GROUP);
        float[] reduced = ctx.allocateFloatLocalArray(GROUP);
        float[] greatest = ctx.allocateFloatLocalArray(QUERIES);
        float[] shrink = ctx.allocateFloatLocalArray(QUERIES);
        float[] total = ctx.allocateFloatLocalArray(QUERIES);
        int lid = ctx.localIdx;
        int tokens = header.get(0);
        int together = QUERIES / share;
        int shares = heads / share;
        // Starts with the last tokens, which see the most positions.
        int block = (tokens + together - 1) / together - 1 - ctx.groupIdx / shares;
        int head0 = (ctx.groupIdx - ctx.groupIdx / shares * shares) * share;
        int kvHead = head0 / (heads / kvHeads);
        int t0 = block * together;
        int last = t0 + together < tokens ? t0 + together : tokens;
        int end = block < 0 ? 0 : step.get(0) + last;
        float scale = 1.0f / TornadoMath.sqrt((float) d);
        for (int i = lid; i < QUERIES * d; i += GROUP) {
            int q = i / d;
            int t = t0 + q / share;
            if (end > 0 && t < tokens) {
                query[i] = qkv.get((t * (heads + 2 * kvHeads) + head0 + q % share) * d + i - q * d) * scale;
            } else {
                query[i] = 0.0f;
            }
        }
        if (lid < QUERIES) {
            greatest[lid] = -1.0e30f;
            total[lid] = 0.0f;
        }
        int lane = lid % (GROUP / 2);
        int half = lid / (GROUP / 2) * (QUERIES / 2);
        int own = lid / QUERIES; // its query in the softmax
        int begin = own * GROUP + lid % QUERIES;
        int seen = step.get(0) + t0 + own / share + 1;
        int rows = GROUP / d;
        int row = lid / d;
        int column = lid - row * d;
        float o0 = 0.0f;
        float o1 = 0.0f;
        float o2 = 0.0f;
        float o3 = 0.0f;
        float o4 = 0.0f;
        float o5 = 0.0f;
        float o6 = 0.0f;
        float o7 = 0.0f;
        float o8 = 0.0f;
        float o9 = 0.0f;
        float oa = 0.0f;
        float ob = 0.0f;
        float oc = 0.0f;
        float od = 0.0f;
        float oe = 0.0f;
        float of = 0.0f;
        ctx.localBarrier();
        for (int from = 0; from < end; from += GROUP) {
            int a = keys + kvHead * d * context + (from + lane < end ? from + lane : end - 1);
            int b = keys + kvHead * d * context + (from + lane + GROUP / 2 < end ? from + lane + GROUP / 2 : end - 1);
            float s0a = 0.0f;
            float s1a = 0.0f;
            float s2a = 0.0f;
            float s3a = 0.0f;
            float s4a = 0.0f;
            float s5a = 0.0f;
            float s6a = 0.0f;
            float s7a = 0.0f;
            float s0b = 0.0f;
            float s1b = 0.0f;
            float s2b = 0.0f;
            float s3b = 0.0f;
            float s4b = 0.0f;
            float s5b = 0.0f;
            float s6b = 0.0f;
            float s7b = 0.0f;
            for (int i = 0; i < d; i++) {
                float ka = cache.get(a + i * context);
                float kb = cache.get(b + i * context);
                int at = half * d + i;
                float q0 = query[at];
                float q1 = query[at + d];
                float q2 = query[at + 2 * d];
                float q3 = query[at + 3 * d];
                float q4 = query[at + 4 * d];
                float q5 = query[at + 5 * d];
                float q6 = query[at + 6 * d];
                float q7 = query[at + 7 * d];
                s0a += q0 * ka;
                s0b += q0 * kb;
                s1a += q1 * ka;
                s1b += q1 * kb;
                s2a += q2 * ka;
                s2b += q2 * kb;
                s3a += q3 * ka;
                s3b += q3 * kb;
                s4a += q4 * ka;
                s4b += q4 * kb;
                s5a += q5 * ka;
                s5b += q5 * kb;
                s6a += q6 * ka;
                s6b += q6 * kb;
                s7a += q7 * ka;
                s7b += q7 * kb;
            }
            int put = half * GROUP + lane;
            scores[put] = s0a;
            scores[put + GROUP / 2] = s0b;
            scores[put + GROUP] = s1a;
            scores[put + GROUP + GROUP / 2] = s1b;
            scores[put + 2 * GROUP] = s2a;
            scores[put + 2 * GROUP + GROUP / 2] = s2b;
            scores[put + 3 * GROUP] = s3a;
            scores[put + 3 * GROUP + GROUP / 2] = s3b;
            scores[put + 4 * GROUP] = s4a;
            scores[put + 4 * GROUP + GROUP / 2] = s4b;
            scores[put + 5 * GROUP] = s5a;
            scores[put + 5 * GROUP + GROUP / 2] = s5b;
            scores[put + 6 * GROUP] = s6a;
            scores[put + 6 * GROUP + GROUP / 2] = s6b;
            scores[put + 7 * GROUP] = s7a;
            scores[put + 7 * GROUP + GROUP / 2] = s7b;
            ctx.localBarrier();
            // Each of a query's sixteen work-items has every sixteenth of its scores.
            float most = -1.0e30f;
            for (int i = 0; i < GROUP; i += QUERIES) {
                if (from + lid % QUERIES + i < seen) {
                    most = TornadoMath.max(most, scores[begin + i]);
                }
            }
            reduced[lid] = most;
            for (int n = QUERIES / 2; n > 0; n >>= 1) {
                ctx.localBarrier();
                if (lid % QUERIES < n) {
                    reduced[lid] = TornadoMath.max(reduced[lid], reduced[lid + n]);
                }
            }
            ctx.localBarrier();
            most = TornadoMath.max(greatest[own], reduced[own * QUERIES]);
            float sum = 0.0f;
            for (int i = 0; i < GROUP; i += QUERIES) {
                float weight = 0.0f;
                if (from + lid % QUERIES + i < seen) {
                    weight = TornadoMath.exp(scores[begin + i] - most);
                }
                scores[begin + i] = weight;
                sum += weight;
            }
            ctx.localBarrier();
            reduced[lid] = sum;
            for (int n = QUERIES / 2; n > 0; n >>= 1) {
                ctx.localBarrier();
                if (lid % QUERIES < n) {
                    reduced[lid] = reduced[lid] + reduced[lid + n];
                }
            }
            if (lid % QUERIES == 0) {
                float less = TornadoMath.exp(greatest[own] - most);
                shrink[own] = less;
                total[own] = total[own] * less + reduced[lid];
                greatest[own] = most;
            }
            ctx.localBarrier();
            o0 = o0 * shrink[0];
            o1 = o1 * shrink[1];
            o2 = o2 * shrink[2];
            o3 = o3 * shrink[3];
            o4 = o4 * shrink[4];
            o5 = o5 * shrink[5];
            o6 = o6 * shrink[6];
            o7 = o7 * shrink[7];
            o8 = o8 * shrink[8];
            o9 = o9 * shrink[9];
            oa = oa * shrink[10];
            ob = ob * shrink[11];
            oc = oc * shrink[12];
            od = od * shrink[13];
            oe = oe * shrink[14];
            of = of * shrink[15];
            int here = end - from < GROUP ? end - from : GROUP;
            int value = keys + kvHeads * d * context + (kvHead * context + from) * d + column;
            for (int p = row; p < here; p += rows) {
                float v = cache.get(value + p * d);
                o0 += scores[p] * v;
                o1 += scores[p + GROUP] * v;
                o2 += scores[p + 2 * GROUP] * v;
                o3 += scores[p + 3 * GROUP] * v;
                o4 += scores[p + 4 * GROUP] * v;
                o5 += scores[p + 5 * GROUP] * v;
                o6 += scores[p + 6 * GROUP] * v;
                o7 += scores[p + 7 * GROUP] * v;
                o8 += scores[p + 8 * GROUP] * v;
                o9 += scores[p + 9 * GROUP] * v;
                oa += scores[p + 10 * GROUP] * v;
                ob += scores[p + 11 * GROUP] * v;
                oc += scores[p + 12 * GROUP] * v;
                od += scores[p + 13 * GROUP] * v;
                oe += scores[p + 14 * GROUP] * v;
                of += scores[p + 15 * GROUP] * v;
            }
            ctx.localBarrier();
        }
        scores[lid] = o0;
        scores[lid + GROUP] = o1;
        scores[lid + 2 * GROUP] = o2;
        scores[lid + 3 * GROUP] = o3;
        scores[lid + 4 * GROUP] = o4;
        scores[lid + 5 * GROUP] = o5;
        scores[lid + 6 * GROUP] = o6;
        scores[lid + 7 * GROUP] = o7;
        scores[lid + 8 * GROUP] = o8;
        scores[lid + 9 * GROUP] = o9;
        scores[lid + 10 * GROUP] = oa;
        scores[lid + 11 * GROUP] = ob;
        scores[lid + 12 * GROUP] = oc;
        scores[lid + 13 * GROUP] = od;
        scores[lid + 14 * GROUP] = oe;
        scores[lid + 15 * GROUP] = of;
        ctx.localBarrier();
        for (int i = lid; i < QUERIES * d; i += GROUP) {
            int q = i / d;
            int t = t0 + q / share;
            if (end > 0 && t < tokens) {
                float sum = 0.0f;
                for (int r = 0; r < rows; r++) {
                    sum += scores[q * GROUP + r * d + i - q * d];
                }
                attended.set((t * heads + head0 + q % share) * d + i - q * d, sum / total[q]);
            }
        }
    }

    /**
     * Finds the largest logit of each part and its index, on ties the first. Grid: {@value #CHOICES} work-groups.
     *
     * @param places [{@value #CHOICES}]
     */
    static void chooseParts(KernelContext ctx, FloatArray logits, IntArray places, int count) {
        float[] values = ctx.allocateFloatLocalArray(GROUP);
        int[] there = ctx.allocateIntLocalArray(GROUP);
        int lane = ctx.localIdx;
        float best = -3.0e38f;
        int place = count - 1;
        for (int i = ctx.globalIdx; i < count; i += GROUP * CHOICES) {
            float value = logits.get(i);
            if (value > best) {
                best = value;
                place = i;
            }
        }
        values[lane] = best;
        there[lane] = place;
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                float other = values[lane + half];
                int where = there[lane + half];
                if (other > values[lane] || (other == values[lane] && where < there[lane])) {
                    values[lane] = other;
                    there[lane] = where;
                }
            }
        }
        if (lane == 0) {
            places.set(ctx.groupIdx, there[0]);
        }
    }

    /**
     * {@code next[0]} = the index of the largest logit among the places of {@link #chooseParts}. Grid: one work-group.
     */
    static void choose(KernelContext ctx, FloatArray logits, IntArray places, IntArray next) {
        float[] values = ctx.allocateFloatLocalArray(GROUP);
        int[] there = ctx.allocateIntLocalArray(GROUP);
        int lane = ctx.localIdx;
        int place = places.get(lane < CHOICES ? lane : 0);
        values[lane] = logits.get(place);
        there[lane] = place;
        for (int half = GROUP / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (lane < half) {
                float other = values[lane + half];
                int where = there[lane + half];
                if (other > values[lane] || (other == values[lane] && where < there[lane])) {
                    values[lane] = other;
                    there[lane] = where;
                }
            }
        }
        if (lane == 0) {
            next.set(0, there[0]);
        }
    }
}
