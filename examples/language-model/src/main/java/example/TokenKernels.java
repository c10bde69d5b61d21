package example;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** From tokens to hidden states, and from logits to the next token. */
final class TokenKernels {
    /** Work-groups of {@link #chooseParts}. */
    static final int CHOICES = 128;

    private TokenKernels() {}

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
                hidden.set(t * cols + i + b * ints, ((packed << (24 - 8 * b)) >> 24) * scale);
                output.set(t * cols + i + b * ints, 0.0f);
            }
        }
    }

    /**
     * Finds the largest logit of each part and its index, on ties the first. Grid: {@value #CHOICES} work-groups.
     *
     * @param places [{@value #CHOICES}]
     */
    static void chooseParts(KernelContext ctx, FloatArray logits, IntArray places, int count) {
        float[] values = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int[] there = ctx.allocateIntLocalArray(WorkGroup.ITEMS);
        int lane = ctx.localIdx;
        float best = -3.0e38f;
        int place = count - 1;
        for (int i = ctx.globalIdx; i < count; i += WorkGroup.ITEMS * CHOICES) {
            float value = logits.get(i);
            if (value > best) {
                best = value;
                place = i;
            }
        }
        values[lane] = best;
        there[lane] = place;
        for (int half = WorkGroup.ITEMS / 2; half > 0; half >>= 1) {
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
        float[] values = ctx.allocateFloatLocalArray(WorkGroup.ITEMS);
        int[] there = ctx.allocateIntLocalArray(WorkGroup.ITEMS);
        int lane = ctx.localIdx;
        int place = places.get(lane < CHOICES ? lane : 0);
        values[lane] = logits.get(place);
        there[lane] = place;
        for (int half = WorkGroup.ITEMS / 2; half > 0; half >>= 1) {
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
