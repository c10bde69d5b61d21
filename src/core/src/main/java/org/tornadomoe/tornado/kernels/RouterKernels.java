package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.math.TornadoMath;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * The router: from hidden states to the experts of every token and their weights.
 *
 * <p>Two habits here are TornadoVM's, whose OpenCL takes {@code x <= y} for {@code !(y < x)}, also of a NaN, and gets
 * {@code a || (b && c) ? 1 : 0} wrong: what isn't a number is told by {@code <} and {@code >} alone, and a tie by
 * choosing between two counts. Loops over local arrays run over what isn't a constant, since unrolled ones don't all
 * compile.
 */
public final class RouterKernels {
    /** Work-items of a group of {@link #routerLogits}. */
    public static final int LOGIT_GROUP = 128;

    /** Tokens of a group of {@link #routerLogits}. */
    public static final int LOGIT_TOKENS = 4;

    /** Work-items of a group that chooses the experts of one token. */
    public static final int TOP_K_GROUP = 128;

    /** The most choices of {@link #topK}, and the most it can choose: the sizes of its local arrays. */
    public static final int MAX_EXPERTS = 1024;

    /** See {@link #MAX_EXPERTS}. */
    public static final int MAX_TOP_K = 32;

    /** Work-items of a group of {@link #addZeroExperts}. */
    public static final int GROUP = 128;

    /** The score functions of {@link #topK}. */
    public static final int SOFTMAX = 0;

    public static final int SIGMOID = 1;
    public static final int SQRTSOFTPLUS = 2;
    public static final int IDENTITY = 3;

    /** Choices that are ranked among themselves first; at least {@link #MAX_TOP_K}. */
    private static final int CHUNK = 64;

    /** The most that are still in after that. */
    private static final int MAX_SURVIVORS = MAX_EXPERTS / CHUNK * MAX_TOP_K;

    /** Items that add up what the others have, each a part of it. */
    private static final int PARTS = 8;

    private static final int PART = TOP_K_GROUP / PARTS;

    /** The key of what weighs nothing, in place of minus infinity: compilers may take it that there is none. */
    private static final float LAST = -Float.MAX_VALUE;

    private RouterKernels() {}

    /**
     * Router logits: {@code logits[m][l] = Σ_h hidden[m][h] · router[l][h] + bias[l]}, in float. A token's logits are
     * the same bits whatever the other tokens are.
     *
     * <p>Grid: one group of {@link #LOGIT_GROUP} work-items for a row of the router (x) and {@link #LOGIT_TOKENS}
     * tokens (y). Neighbouring work-items read neighbouring values. Costs 2·M·L·H operations and 4·L·H bytes for every
     * {@link #LOGIT_TOKENS} tokens, from memory once as far as the cache holds them.
     *
     * @param header [0] = M
     * @param hidden [M, H]
     * @param router [L, H]
     * @param bias [L]
     * @param logits [M, L], written
     */
    public static void routerLogits(
            KernelContext ctx,
            IntArray header,
            FloatArray hidden,
            FloatArray router,
            FloatArray bias,
            FloatArray logits,
            int hiddenDim,
            int numLogits) {
        float[] partial = ctx.allocateFloatLocalArray(LOGIT_TOKENS * LOGIT_GROUP);
        float[] folded = ctx.allocateFloatLocalArray(LOGIT_GROUP);
        int lane = ctx.localIdx;
        int row = ctx.groupIdx;
        int first = ctx.groupIdy * LOGIT_TOKENS;
        int tokens = header.get(0);
        int end = first < tokens ? hiddenDim : 0;
        int last = tokens - 1;
        int routerRow = row * hiddenDim;
        // Tokens beyond the last one are that one again, and not written.
        int row0 = first * hiddenDim;
        int row1 = (first + 1 < last ? first + 1 : last) * hiddenDim;
        int row2 = (first + 2 < last ? first + 2 : last) * hiddenDim;
        int row3 = (first + 3 < last ? first + 3 : last) * hiddenDim;
        float sum0 = 0.0f;
        float sum1 = 0.0f;
        float sum2 = 0.0f;
        float sum3 = 0.0f;
        for (int h = lane; h < end; h += LOGIT_GROUP) {
            float weight = router.get(routerRow + h);
            sum0 += hidden.get(row0 + h) * weight;
            sum1 += hidden.get(row1 + h) * weight;
            sum2 += hidden.get(row2 + h) * weight;
            sum3 += hidden.get(row3 + h) * weight;
        }
        partial[lane] = sum0;
        partial[LOGIT_GROUP + lane] = sum1;
        partial[2 * LOGIT_GROUP + lane] = sum2;
        partial[3 * LOGIT_GROUP + lane] = sum3;
        ctx.localBarrier();
        // A quarter of the group for each token: 128 values to 32, to 8, to one.
        int quarter = lane & ~31;
        int at = (lane >> 5) * LOGIT_GROUP + (lane & 31);
        folded[lane] = partial[at] + partial[at + 32] + partial[at + 64] + partial[at + 96];
        ctx.localBarrier();
        if (lane - quarter < 8) {
            partial[lane] = folded[lane] + folded[lane + 8] + folded[lane + 16] + folded[lane + 24];
        }
        ctx.localBarrier();
        if (lane == quarter && first + (lane >> 5) < tokens) {
            float sum = 0.0f;
            for (int i = 0; i < 8; i++) {
                sum += partial[lane + i];
            }
            logits.set((first + (lane >> 5)) * numLogits + row, sum + bias.get(row));
        }
    }

    /**
     * A token's experts and their weights: the K choices with the greatest keys, in descending order, a tie going to
     * the lower one; then n shared experts. Everything that {@code Router} in {@code org.tornadomoe.reference} defines,
     * which see for what isn't finite.
     *
     * <p>A choice's key is its logit, or with {@code biased} 1 its score plus its correction bias. A choice is ranked
     * by counting those before it, first in its chunk of {@link #CHUNK}, then the first K of all chunks among
     * themselves: no step waits for another but for a few barriers.
     *
     * <p>Grid: one group of {@link #TOP_K_GROUP} work-items a token. Costs {@value #CHUNK}·C + (K·C/{@value #CHUNK})²
     * comparisons a token.
     *
     * @param header [0] = M
     * @param logits [M, C + gate]; C = E + zero experts is at most {@link #MAX_EXPERTS}
     * @param correctionBias [C]; not looked at with {@code biased} 0
     * @param topkIds [M, K + n], written; K + n is at most {@link #MAX_TOP_K}
     * @param topkWeights [M, K + n], written
     * @param numExperts E
     * @param choices C
     * @param shared n; they have the ids E to E + n − 1, and zero experts the ids from there on
     * @param scoring {@link #SOFTMAX} and so on; weights are NaN with a number that is none of these
     * @param renormalize 1 to divide weights by their sum
     * @param groups groups that are chosen first; 0 for none, and 1 tells of a way with what isn't finite
     * @param gate 1 if the shared experts' weight is the sigmoid of {@code logits[m][C]}; else it is 1
     * @param factor what the weights of the chosen are multiplied by
     */
    public static void topK(
            KernelContext ctx,
            IntArray header,
            FloatArray logits,
            FloatArray correctionBias,
            IntArray topkIds,
            FloatArray topkWeights,
            int numExperts,
            int choices,
            int shared,
            int topK,
            int scoring,
            int renormalize,
            int biased,
            int groups,
            int topkGroup,
            int gate,
            float factor) {
        float[] keys = ctx.allocateFloatLocalArray(MAX_EXPERTS);
        float[] survivorKeys = ctx.allocateFloatLocalArray(MAX_SURVIVORS);
        int[] survivorIds = ctx.allocateIntLocalArray(MAX_SURVIVORS);
        float[] values = ctx.allocateFloatLocalArray(TOP_K_GROUP);
        int[] counts = ctx.allocateIntLocalArray(TOP_K_GROUP);
        float[] chosenKeys = ctx.allocateFloatLocalArray(MAX_TOP_K);
        int[] chosenIds = ctx.allocateIntLocalArray(MAX_TOP_K);
        float[] weights = ctx.allocateFloatLocalArray(MAX_TOP_K);
        int lane = ctx.localIdx;
        int token = ctx.groupIdx;
        int active = token < header.get(0) ? 1 : 0;
        int all = active * choices;
        int row = token * (choices + gate);

        // A softmax needs the row's greatest logit, whether the row can be used at all, and at times its sum.
        float greatest = 0.0f;
        int unusable = 0;
        float denominator = 1.0f;
        if (scoring == SOFTMAX) {
            int usable = 0;
            greatest = LAST;
            for (int e = lane; e < all; e += TOP_K_GROUP) {
                float logit = logits.get(row + e);
                usable += logit < Float.MAX_VALUE ? 1 : 0;
                greatest = logit > greatest ? logit : greatest;
            }
            values[lane] = greatest;
            counts[lane] = usable;
            ctx.localBarrier();
            if (lane < PARTS) {
                for (int i = 1; i < PART; i++) {
                    greatest = TornadoMath.max(greatest, values[lane + i * PARTS]);
                    usable += counts[lane + i * PARTS];
                }
                values[lane] = greatest;
                counts[lane] = usable;
            }
            ctx.localBarrier();
            greatest = LAST;
            usable = 0;
            for (int i = 0; i < PARTS; i++) {
                greatest = TornadoMath.max(greatest, values[i]);
                usable += counts[i];
            }
            unusable = choices - usable + (greatest > LAST ? 0 : 1);
            if (renormalize == 0 || biased == 1) {
                float sum = 0.0f;
                for (int e = lane; e < all; e += TOP_K_GROUP) {
                    float logit = logits.get(row + e);
                    sum += unusable > 0 ? 0.0f : TornadoMath.exp((logit > LAST ? logit : LAST) - greatest);
                }
                ctx.localBarrier();
                values[lane] = sum;
                ctx.localBarrier();
                if (lane < PARTS) {
                    for (int i = 1; i < PART; i++) {
                        sum += values[lane + i * PARTS];
                    }
                    values[lane] = sum;
                }
                ctx.localBarrier();
                denominator = 0.0f;
                for (int i = 0; i < PARTS; i++) {
                    denominator += values[i];
                }
            }
        }

        for (int e = lane; e < all; e += TOP_K_GROUP) {
            float logit = logits.get(row + e);
            float key;
            if (biased == 1) {
                float score = 0.0f;
                if (unusable == 0) {
                    score = score(logit, scoring, greatest) / denominator;
                }
                key = score + correctionBias.get(e);
                if (groups > 0) {
                    key = logit > LAST ? (logit < Float.MAX_VALUE ? key : LAST) : LAST;
                }
            } else if (scoring == SIGMOID) {
                key = logit > LAST ? (logit < Float.MAX_VALUE ? logit : Float.MAX_VALUE) : LAST;
            } else {
                key = logit > LAST ? (logit < Float.MAX_VALUE ? logit : LAST) : LAST;
            }
            keys[e] = unusable > 0 && biased == 0 ? 0.0f : key;
        }
        ctx.localBarrier();

        if (groups > 1 && choices > groups && choices % groups == 0) {
            int size = choices / groups;
            for (int g = lane; g < active * groups; g += TOP_K_GROUP) {
                float best = LAST;
                float second = LAST;
                for (int e = g * size; e < g * size + size; e++) {
                    float key = keys[e];
                    second = key > best ? best : (key > second ? key : second);
                    best = key > best ? key : best;
                }
                survivorKeys[g] = biased == 0 ? best : (second > LAST ? best + second : LAST);
            }
            ctx.localBarrier();
            for (int e = lane; e < all; e += TOP_K_GROUP) {
                int group = e / size;
                float own = survivorKeys[group];
                int before = 0;
                for (int g = 0; g < active * groups; g++) {
                    int notLess = survivorKeys[g] < own ? 0 : 1;
                    int greater = survivorKeys[g] > own ? 1 : 0;
                    before += g < group ? notLess : greater;
                }
                if (before >= topkGroup) {
                    keys[e] = LAST;
                }
            }
            ctx.localBarrier();
        }

        for (int e = lane; e < all; e += TOP_K_GROUP) {
            int chunk = e / CHUNK;
            int from = chunk * CHUNK;
            int to = TornadoMath.min(from + CHUNK, choices);
            float own = keys[e];
            int before = 0;
            for (int other = from; other < to; other++) {
                int notLess = keys[other] < own ? 0 : 1;
                int greater = keys[other] > own ? 1 : 0;
                before += other < e ? notLess : greater;
            }
            if (before < topK) {
                // Only the last chunk may have fewer than K, so there are no gaps.
                survivorKeys[chunk * topK + before] = own;
                survivorIds[chunk * topK + before] = e;
            }
        }
        ctx.localBarrier();
        int lastChunk = (choices - 1) / CHUNK;
        int survivors = active * (lastChunk * topK + TornadoMath.min(topK, choices - lastChunk * CHUNK));
        for (int s = lane; s < survivors; s += TOP_K_GROUP) {
            // Survivors with equal keys are in the order of their ids.
            float own = survivorKeys[s];
            int before = 0;
            for (int other = 0; other < survivors; other++) {
                int notLess = survivorKeys[other] < own ? 0 : 1;
                int greater = survivorKeys[other] > own ? 1 : 0;
                before += other < s ? notLess : greater;
            }
            if (before < topK) {
                chosenKeys[before] = own;
                chosenIds[before] = survivorIds[s];
            }
        }
        ctx.localBarrier();

        int slots = active * topK;
        int id = 0;
        if (lane < slots) {
            id = chosenIds[lane];
        }
        // Read by every work-item, since compilers may read ahead of the question whether it is one of the K.
        float chosenLogit = logits.get(row + id);
        if (lane < slots) {
            float weight = 0.0f;
            if (unusable == 0 && chosenKeys[lane] > LAST) {
                weight = score(chosenLogit, scoring, greatest) / denominator;
            }
            weights[lane] = weight;
        }
        ctx.localBarrier();
        int out = token * (topK + shared);
        if (lane < slots) {
            float sum = 0.0f;
            for (int k = 0; k < topK; k++) {
                sum += weights[k];
            }
            float weight = weights[lane];
            if (renormalize == 1 && sum > 0.0f) {
                weight = weight / sum;
            }
            weight = weight * factor;
            if (groups == 1 && biased == 1 && renormalize == 1) {
                weight = chosenKeys[0] > LAST ? weight : 1.0f / topK;
            }
            if (scoring < SOFTMAX || scoring > IDENTITY) {
                weight = Float.NaN;
            }
            topkIds.set(out + lane, id < numExperts ? id : id + shared);
            topkWeights.set(out + lane, weight);
        }
        if (lane < active * shared) {
            float weight = 1.0f;
            if (gate == 1) {
                weight = score(logits.get(row + choices), SIGMOID, 0.0f);
            }
            topkIds.set(out + topK + lane, numExperts + lane);
            topkWeights.set(out + topK + lane, weight);
        }
    }

    /** A logit's score, a softmax's without its denominator; 0 if it isn't finite. */
    private static float score(float logit, int scoring, float greatest) {
        float score = logit;
        if (scoring == SOFTMAX) {
            score = TornadoMath.exp(logit - greatest);
        } else if (scoring == SIGMOID) {
            score = 1.0f / (1.0f + TornadoMath.exp(-logit));
        } else if (scoring == SQRTSOFTPLUS) {
            // ln(1 + t) for a small t by its series, where 1 + t would lose it.
            float t = TornadoMath.exp(-TornadoMath.abs(logit));
            float log = t < 0.01f ? t * (1.0f - t * (0.5f - t * 0.33333334f)) : TornadoMath.log(1.0f + t);
            score = TornadoMath.sqrt((logit > 0.0f ? logit : 0.0f) + log);
        }
        return score > LAST ? (score < Float.MAX_VALUE ? score : 0.0f) : 0.0f;
    }

    /**
     * Zero experts, which hand a token on as it is:
     * {@code output[m][h] += hidden[m][h] · Σ weights of its pairs with them}.
     *
     * <p>Grid: a work-item an element, in groups of {@link #GROUP}. Costs 12 bytes an element.
     *
     * @param header [0] = M
     * @param topkIds [M, pairs]
     * @param topkWeights [M, pairs]
     * @param hidden [M, H]
     * @param output [M, H], added to
     * @param pairs of a token
     * @param firstId the ids from here on are zero experts'
     */
    public static void addZeroExperts(
            KernelContext ctx,
            IntArray header,
            IntArray topkIds,
            FloatArray topkWeights,
            FloatArray hidden,
            FloatArray output,
            int pairs,
            int firstId,
            int hiddenDim) {
        int index = ctx.globalIdx;
        int token = index / hiddenDim;
        if (token < header.get(0)) {
            float weight = 0.0f;
            for (int p = token * pairs; p < token * pairs + pairs; p++) {
                if (topkIds.get(p) >= firstId) {
                    weight += topkWeights.get(p);
                }
            }
            output.set(index, output.get(index) + weight * hidden.get(index));
        }
    }
}
