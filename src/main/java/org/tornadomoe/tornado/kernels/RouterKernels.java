package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** The router: from hidden states to the experts of every token and their weights. */
public final class RouterKernels {
    /** Work-items of a group that computes one logit. */
    public static final int LOGIT_GROUP = 32;

    /** Work-items of a group that chooses the experts of one token. */
    public static final int TOP_K_GROUP = 128;

    /** The most experts {@link #topK} can choose from, and the most it can choose: the sizes of its local arrays. */
    public static final int MAX_EXPERTS = 1024;

    /** See {@link #MAX_EXPERTS}. */
    public static final int MAX_TOP_K = 32;

    /** Any finite score is greater; marks an expert as taken. */
    private static final float TAKEN = Float.NEGATIVE_INFINITY;

    /** What a score of minus infinity is replaced by, so that it stays greater than {@link #TAKEN}. */
    private static final float LOWEST = -3.0e38f;

    private RouterKernels() {}

    /**
     * Router logits: {@code logits[m][e] = Σ_h hidden[m][h] · router[e][h]}, in float.
     *
     * <p>Grid: {@link #LOGIT_GROUP} work-items a logit, groups in the order m·E + e. Costs 2·M·E·H operations and, from
     * memory, 4·(M·H + E·H) bytes; the rest is served by the caches.
     *
     * @param header [0] = M
     * @param hidden [M, H]
     * @param router [E, H]
     * @param logits [M, E], written
     */
    public static void routerLogits(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray router,
            FloatArray logits,
            int hiddenDim,
            int numExperts) {
        float[] partial = ctx.allocateFloatLocalArray(LOGIT_GROUP);
        int lane = ctx.localIdx;
        int logit = ctx.groupIdx;
        int token = logit / numExperts;
        int expert = logit - token * numExperts;
        int end = token < header.get(0) ? hiddenDim : 0;
        int hiddenRow = token * hiddenDim;
        int routerRow = expert * hiddenDim;
        float sum = 0.0f;
        for (int h = lane; h < end; h += LOGIT_GROUP) {
            sum += hidden.get(hiddenRow + h) * router.get(routerRow + h);
        }
        partial[lane] = sum;
        for (int stride = LOGIT_GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                partial[lane] += partial[lane + stride];
            }
        }
        if (lane == 0 && end > 0) {
            logits.set(logit, partial[0]);
        }
    }

    /**
     * The K experts with the greatest logits, in descending order, a tie going to the lower id; and their weights.
     *
     * <p>With {@code renormalize} 1 the weights are the softmax over the chosen experts (which is also what a softmax over
     * all experts, divided by the sum of the chosen, comes to); with 0 the softmax over all experts. A row that holds NaN
     * or plus infinity, or minus infinity only, has no probabilities: it gets experts 0 … K−1 with weight 0, as in vLLM, which takes such
     * probabilities as 0.
     *
     * <p>Grid: one group of {@link #TOP_K_GROUP} work-items a token. Costs E·(K+3) comparisons and E exponentials a token.
     *
     * @param header [0] = M
     * @param logits [M, E], E at most {@link #MAX_EXPERTS}
     * @param topkIds [M, K], written; K at most {@link #MAX_TOP_K}
     * @param topkWeights [M, K], written
     */
    public static void topK(
            KernelContext ctx,
            IntArray header,
            FloatArray logits,
            IntArray topkIds,
            FloatArray topkWeights,
            int numExperts,
            int topK,
            int renormalize) {
        float[] scores = ctx.allocateFloatLocalArray(MAX_EXPERTS);
        float[] values = ctx.allocateFloatLocalArray(TOP_K_GROUP);
        int[] ids = ctx.allocateIntLocalArray(TOP_K_GROUP);
        float[] chosen = ctx.allocateFloatLocalArray(MAX_TOP_K);
        int lane = ctx.localIdx;
        int token = ctx.groupIdx;
        int experts = token < header.get(0) ? numExperts : 0;
        int row = token * numExperts;

        // The greatest logit, and whether the row can be used at all.
        float greatest = LOWEST;
        int unusable = 0;
        for (int e = lane; e < experts; e += TOP_K_GROUP) {
            float logit = logits.get(row + e);
            unusable += logit <= Float.MAX_VALUE ? 0 : 1;
            float score = logit > LOWEST ? logit : LOWEST;
            scores[e] = score;
            greatest = TornadoMath.max(greatest, score);
        }
        values[lane] = greatest;
        ids[lane] = unusable;
        for (int stride = TOP_K_GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                values[lane] = TornadoMath.max(values[lane], values[lane + stride]);
                ids[lane] += ids[lane + stride];
            }
        }
        ctx.localBarrier();
        greatest = values[0];
        unusable = ids[0] + (greatest > LOWEST ? 0 : 1);
        ctx.localBarrier();

        // The softmax's denominator over all experts.
        float sum = 0.0f;
        for (int e = lane; e < experts; e += TOP_K_GROUP) {
            if (unusable > 0) {
                scores[e] = 0.0f;
            } else {
                sum += TornadoMath.exp(scores[e] - greatest);
            }
        }
        values[lane] = sum;
        for (int stride = TOP_K_GROUP / 2; stride > 0; stride >>= 1) {
            ctx.localBarrier();
            if (lane < stride) {
                values[lane] += values[lane + stride];
            }
        }
        ctx.localBarrier();
        float denominator = values[0];
        float chosenSum = 0.0f;

        for (int k = 0; k < topK; k++) {
            float best = TAKEN;
            int bestId = MAX_EXPERTS;
            for (int e = lane; e < experts; e += TOP_K_GROUP) {
                // Ids ascend within a work-item, so that a tie stays with the lower one.
                if (scores[e] > best) {
                    best = scores[e];
                    bestId = e;
                }
            }
            ctx.localBarrier();
            values[lane] = best;
            ids[lane] = bestId;
            for (int stride = TOP_K_GROUP / 2; stride > 0; stride >>= 1) {
                ctx.localBarrier();
                if (lane < stride) {
                    float other = values[lane + stride];
                    int otherId = ids[lane + stride];
                    if (other > values[lane] || (other == values[lane] && otherId < ids[lane])) {
                        values[lane] = other;
                        ids[lane] = otherId;
                    }
                }
            }
            ctx.localBarrier();
            if (lane == 0 && experts > 0) {
                float weight = unusable > 0 ? 0.0f : TornadoMath.exp(values[0] - greatest);
                chosen[k] = weight;
                chosenSum += weight;
                scores[ids[0]] = TAKEN;
                topkIds.set(token * topK + k, ids[0]);
            }
            ctx.localBarrier();
        }
        if (lane == 0 && experts > 0) {
            float divisor = renormalize == 1 ? chosenSum : denominator;
            divisor = divisor > 0.0f ? divisor : 1.0f;
            for (int k = 0; k < topK; k++) {
                topkWeights.set(token * topK + k, chosen[k] / divisor);
            }
        }
    }
}
