package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Rotation and attention. A step is {@code header[0]} = M tokens of one sequence; {@code step[0]} is the first one's
 * position. The arrays:
 *
 * <ul>
 *   <li>{@code qkv} [M, (heads + 2 kvHeads) d]: a token's queries, keys and values; d is {@code headDim}, a multiple of
 *       8 that divides {@value #WIDEST}
 *   <li>{@code gains}: if {@code norms} is 1, the gains of each query's norm from {@code gainsFrom} on, then those of
 *       each key's
 *   <li>{@code rotations} [context, d]: cosines, then sines, for half a head each
 *   <li>{@code keys} [kvHeads, d, context], so that neighbouring work-items read neighbouring positions
 *   <li>{@code values} [kvHeads, context, d]
 * </ul>
 */
final class AttentionKernels {
    /** The largest d. */
    static final int WIDEST = WorkGroup.ITEMS / 2;

    /** The number of parts of the positions in {@link #attendPart}. */
    static final int PARTS = 16;

    /** Positions that {@link #attendPart} computes together. */
    private static final int LANES = 32;

    /** Queries per work-group in {@link #attend}; a work-item computes with half of them. */
    static final int QUERIES = 16;

    private static final int HALF = QUERIES / 2;

    /** Positions that {@link #attend} computes together. */
    private static final int BLOCK = 512;

    /** Less than any score. */
    private static final float LEAST = -1.0e30f;

    private AttentionKernels() {}

    /**
     * Norms and rotates queries, in place, and keys, and writes keys and values into the KV cache. Grid: d work-items
     * per query head and key head of each token.
     */
    static void rotateHeads(
            KernelContext ctx,
            IntArray header,
            IntArray step,
            FloatArray qkv,
            FloatArray gains,
            int gainsFrom,
            FloatArray rotations,
            FloatArray keys,
            FloatArray values,
            int heads,
            int kvHeads,
            int d,
            int context,
            int norms,
            float epsilon) {
        float[] reduced = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] normed = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int lid = ctx.localIdx;
        int column = lid % d;
        int number = ctx.groupIdx * (WorkGroup.ITEMS / d) + lid / d;
        int active = number < header.get(0) * (heads + kvHeads) ? 1 : 0;
        int t = active == 1 ? number / (heads + kvHeads) : 0;
        int head = active == 1 ? number - t * (heads + kvHeads) : 0;
        int position = step.get(0) + t;
        int at = (t * (heads + 2 * kvHeads) + head) * d + column;
        float value = qkv.get(at);
        int gainsOfHead = gainsFrom + (head < heads ? 0 : d);
        reduced[lid] = value * value;
        for (int half = d / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (column < half) {
                reduced[lid] = reduced[lid] + reduced[lid + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f;
        if (norms == 1) {
            factor = 1.0f / TornadoMath.sqrt(reduced[lid - column] / d + epsilon) * gains.get(gainsOfHead + column);
        }
        normed[lid] = value * factor;
        ctx.localBarrier();
        float rotated = normed[lid] * rotations.get(position * d + column % (d / 2));
        float sine = rotations.get(position * d + d / 2 + column % (d / 2));
        rotated += column < d / 2 ? -normed[lid + d / 2] * sine : normed[lid - d / 2] * sine;
        if (active == 1 && head < heads) {
            qkv.set(at, rotated);
        }
        if (active == 1 && head >= heads) {
            int kvHead = head - heads;
            keys.set((kvHead * d + column) * context + position, rotated);
            values.set((kvHead * context + position) * d + column, qkv.get(at + kvHeads * d));
        }
    }

    /**
     * Does for one token what {@link #rotateHeads} does for many. Then computes the attention of one of its heads to
     * one of {@value #PARTS} parts of all positions up to its own, {@value #LANES} positions at a time. Neighbouring
     * work-items have neighbouring positions; each of the work-group's eight rows of work-items has an eighth of the
     * head. Grid: one work-group for each part of each head.
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
            FloatArray keys,
            FloatArray values,
            FloatArray parts,
            int heads,
            int kvHeads,
            int d,
            int context,
            int norms,
            float epsilon) {
        float[] query = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] reduced = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] scores = ctx.allocateFloatLocalArray(LANES);
        int lid = ctx.localIdx;
        int head = ctx.groupIdx / PARTS;
        int part = ctx.groupIdx - head * PARTS;
        int kvHead = head / (heads / kvHeads);
        int positions = step.get(0) + 1;
        int share = (positions + 8 * PARTS - 1) / (8 * PARTS) * 8;
        int begin = part * share;
        int end = begin + share < positions ? begin + share : positions;
        int rows = WorkGroup.ITEMS / d;
        int row = lid / d;
        int column = lid - row * d;
        // Row 0 makes the query, row 1 the token's key, which is in the cache for the part that contains the token. All
        // heads write the same key.
        int at = (row == 0 ? head : heads + kvHead) * d + column;
        int gainsOfHead = gainsFrom + (row == 0 ? 0 : d);
        float vector = qkv.get(at);
        reduced[lid] = vector * vector;
        for (int half = d / 2; half > 0; half >>= 1) {
            ctx.localBarrier();
            if (column < half) {
                reduced[lid] = reduced[lid] + reduced[lid + half];
            }
        }
        ctx.localBarrier();
        float factor = 1.0f;
        if (norms == 1) {
            factor = 1.0f / TornadoMath.sqrt(reduced[lid - column] / d + epsilon) * gains.get(gainsOfHead + column);
        }
        query[lid] = vector * factor;
        ctx.localBarrier();
        float rotated = query[lid] * rotations.get((positions - 1) * d + column % (d / 2));
        float sine = rotations.get((positions - 1) * d + d / 2 + column % (d / 2));
        rotated += column < d / 2 ? -query[lid + d / 2] * sine : query[lid - d / 2] * sine;
        if (row == 1 && end == positions && begin < end) {
            keys.set((kvHead * d + column) * context + positions - 1, rotated);
            values.set((kvHead * context + positions - 1) * d + column, qkv.get(at + kvHeads * d));
        }
        ctx.globalBarrier();
        if (row == 0) {
            query[lid] = rotated;
        }
        ctx.localBarrier();
        int lane = lid % LANES;
        int eighth = d / 8;
        int i0 = lid / LANES * eighth;
        float scale = 1.0f / TornadoMath.sqrt((float) d);
        float greatest = LEAST;
        float total = 0.0f;
        float output = 0.0f;
        for (int from = begin; from < end; from += LANES) {
            int position = from + lane < end ? from + lane : end - 1;
            int key = (kvHead * d + i0) * context + position;
            float product = 0.0f;
            for (int i = 0; i < eighth; i++) {
                product += query[i0 + i] * keys.get(key + i * context);
            }
            reduced[lid] = product;
            ctx.localBarrier();
            if (lid < LANES) {
                float sum = 0.0f;
                for (int i = 0; i < WorkGroup.ITEMS / LANES; i++) {
                    sum += reduced[i * LANES + lid];
                }
                scores[lid] = from + lid < end ? sum * scale : LEAST;
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
            int value = (kvHead * context + from) * d + column;
            for (int p = row; p < here; p += rows) {
                float weight = TornadoMath.exp(scores[p] - most);
                total += weight;
                output += weight * values.get(value + p * d);
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

    /** Combines the parts of {@link #attendPart}. Grid: one work-item per element of {@code attended}, [heads, d]. */
    static void attendAll(KernelContext ctx, FloatArray parts, FloatArray attended, int heads, int d) {
        int k = ctx.globalIdx;
        if (k < heads * d) {
            int from = k / d * PARTS * (d + 2);
            float most = LEAST;
            for (int p = 0; p < PARTS; p++) {
                most = TornadoMath.max(most, parts.get(from + p * (d + 2) + d));
            }
            float total = 0.0f;
            float sum = 0.0f;
            for (int p = 0; p < PARTS; p++) {
                int at = from + p * (d + 2);
                float weight = TornadoMath.exp(parts.get(at + d) - most);
                total += weight * parts.get(at + d + 1);
                sum += weight * parts.get(at + k % d);
            }
            attended.set(k, sum / total);
        }
    }

    /**
     * Attention of many tokens, each to all positions up to its own, {@value #BLOCK} positions at a time, with a
     * running maximum and sum. A work-group has {@value #QUERIES} queries that see the same keys: {@code share} heads
     * of {@value #QUERIES} / {@code share} tokens. A work-item computes the scores of four positions and half of the
     * queries, then four columns of half of the outputs: each value that it reads serves several products, and sixteen
     * reads are in flight at once. Grid: one work-group for each share of the heads of that many tokens.
     *
     * @param attended [M, heads d]
     * @param share a power of two that divides heads by kvHeads, at most {@value #QUERIES}
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
            int context,
            int share) {
        float[] query = ctx.allocateFloatLocalArray(WIDEST * QUERIES); // [d, QUERIES]
        float[] scores = ctx.allocateFloatLocalArray(QUERIES * BLOCK); // [QUERIES, BLOCK]
        float[] reduced = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        float[] greatest = ctx.allocateFloatLocalArray(QUERIES);
        float[] shrink = ctx.allocateFloatLocalArray(QUERIES);
        float[] total = ctx.allocateFloatLocalArray(QUERIES);
        int[] at = new int[4];
        float[] read = new float[16];
        float[] products = new float[4 * HALF];
        float[] outputs = new float[4 * HALF];
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
        for (int n = lid; n < QUERIES * d; n += WorkGroup.ITEMS) {
            int q = n / d;
            int i = n - q * d;
            int t = t0 + q / share;
            if (end > 0 && t < tokens) {
                query[i * QUERIES + q] = qkv.get((t * (heads + 2 * kvHeads) + head0 + q % share) * d + i) * scale;
            } else {
                query[i * QUERIES + q] = 0.0f;
            }
        }
        if (lid < QUERIES) {
            greatest[lid] = LEAST;
            total[lid] = 0.0f;
        }
        for (int n = 0; n < 4 * HALF; n++) {
            outputs[n] = 0.0f;
        }
        // For the scores: every 32nd of 128 positions, so that 32 work-items skip what none of the queries sees.
        int scored = lid / (WorkGroup.ITEMS / 2) * HALF;
        int lane = lid % (WorkGroup.ITEMS / 2);
        int first = lane / 32 * 128 + lane % 32;
        // For the softmax: every sixteenth of one query's scores.
        int own = lid / QUERIES;
        int seen = step.get(0) + t0 + own / share + 1;
        // For the outputs: every quarter of the columns, every row'th position.
        int quarter = d / 4;
        int column = lid % quarter;
        int weighted = lid / quarter % 2 * HALF;
        int row = lid / quarter / 2;
        int rows = WorkGroup.ITEMS / quarter / 2;
        ctx.localBarrier();
        for (int from = 0; from < end; from += BLOCK) {
            int here = end - from < BLOCK ? end - from : BLOCK;
            if (first - lane % 32 < here) {
                for (int c = 0; c < 4; c++) {
                    int p = first + 32 * c;
                    at[c] = kvHead * d * context + from + (p < here ? p : here - 1);
                }
                for (int n = 0; n < 4 * HALF; n++) {
                    products[n] = 0.0f;
                }
                for (int i = 0; i < d; i += 4) {
                    for (int n = 0; n < 16; n++) {
                        read[n] = keys.get(at[n % 4] + (i + n / 4) * context);
                    }
                    for (int n = 0; n < 4; n++) {
                        for (int q = 0; q < HALF; q++) {
                            float x = query[(i + n) * QUERIES + scored + q];
                            for (int c = 0; c < 4; c++) {
                                products[4 * q + c] = products[4 * q + c] + x * read[4 * n + c];
                            }
                        }
                    }
                }
                for (int q = 0; q < HALF; q++) {
                    for (int c = 0; c < 4; c++) {
                        scores[(scored + q) * BLOCK + first + 32 * c] = products[4 * q + c];
                    }
                }
            }
            ctx.localBarrier();
            float most = LEAST;
            for (int p = lid % QUERIES; p < here && from + p < seen; p += QUERIES) {
                most = TornadoMath.max(most, scores[own * BLOCK + p]);
            }
            reduced[lid] = most;
            for (int half = QUERIES / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lid % QUERIES < half) {
                    reduced[lid] = TornadoMath.max(reduced[lid], reduced[lid + half]);
                }
            }
            ctx.localBarrier();
            most = TornadoMath.max(greatest[own], reduced[own * QUERIES]);
            float sum = 0.0f;
            for (int p = lid % QUERIES; p < BLOCK && p < here + 4 * rows; p += QUERIES) {
                float weight = 0.0f;
                if (from + p < seen) {
                    weight = TornadoMath.exp(scores[own * BLOCK + p] - most);
                }
                scores[own * BLOCK + p] = weight;
                sum += weight;
            }
            ctx.localBarrier();
            reduced[lid] = sum;
            for (int half = QUERIES / 2; half > 0; half >>= 1) {
                ctx.localBarrier();
                if (lid % QUERIES < half) {
                    reduced[lid] = reduced[lid] + reduced[lid + half];
                }
            }
            if (lid % QUERIES == 0) {
                float less = TornadoMath.exp(greatest[own] - most);
                shrink[own] = less;
                total[own] = total[own] * less + reduced[lid];
                greatest[own] = most;
            }
            ctx.localBarrier();
            for (int n = 0; n < 4 * HALF; n++) {
                outputs[n] = outputs[n] * shrink[weighted + n / 4];
            }
            for (int p = row; p < here; p += 4 * rows) {
                for (int n = 0; n < 16; n++) {
                    int position = p + n / 4 * rows;
                    position = from + (position < here ? position : here - 1);
                    read[n] = values.get((kvHead * context + position) * d + column + n % 4 * quarter);
                }
                for (int n = 0; n < 4; n++) {
                    for (int q = 0; q < HALF; q++) {
                        float weight = scores[(weighted + q) * BLOCK + p + n * rows]; // 0 from here on
                        for (int c = 0; c < 4; c++) {
                            outputs[4 * q + c] = outputs[4 * q + c] + weight * read[4 * n + c];
                        }
                    }
                }
            }
            ctx.localBarrier();
        }
        // The rows' sums, [rows, QUERIES, d], fill the room of the scores.
        for (int q = 0; q < HALF; q++) {
            for (int c = 0; c < 4; c++) {
                scores[(row * QUERIES + weighted + q) * d + column + c * quarter] = outputs[4 * q + c];
            }
        }
        ctx.localBarrier();
        for (int n = lid; n < QUERIES * d; n += WorkGroup.ITEMS) {
            int q = n / d;
            int t = t0 + q / share;
            if (end > 0 && t < tokens) {
                float sum = 0.0f;
                for (int r = 0; r < rows; r++) {
                    sum += scores[r * QUERIES * d + n];
                }
                attended.set((t * heads + head0 + q % share) * d + n - q * d, sum / total[q]);
            }
        }
    }
}
