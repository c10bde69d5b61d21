package org.tornadomoe.config;

/** The checks of a {@link FusedMoeConfig}'s fields; each throws {@link IllegalArgumentException} naming the field. */
final class ConfigChecks {
    private ConfigChecks() {}

    static void requireRange(String field, int value, int max) {
        if (value < 1 || value > max) {
            String expected = max == Integer.MAX_VALUE ? "a positive number" : "1 to " + max;
            throw new IllegalArgumentException(field + ": expected " + expected + ", got " + value);
        }
    }

    static void requireMultiple(String field, int value, String of, int factor) {
        if (value % factor != 0) {
            throw new IllegalArgumentException(
                    field + ": expected a multiple of " + of + " " + factor + ", got " + value);
        }
    }

    static void requireShared(int shared, int experts, int topK) {
        int most = Math.max(
                0, Math.min(FusedMoeConfig.MAX_EXPERTS - experts, FusedMoeConfig.MAX_EXPERTS_PER_TOKEN - topK));
        if (shared < 0 || shared > most) {
            throw new IllegalArgumentException("numFusedSharedExperts: expected 0 to " + most + " beside " + experts
                    + " experts and " + topK + " per token (" + FusedMoeConfig.MAX_EXPERTS + " and "
                    + FusedMoeConfig.MAX_EXPERTS_PER_TOKEN
                    + " in all), got " + shared);
        }
    }

    static void requireRouter(RouterConfig router, int experts, int topK, int shared) {
        int logits = experts + router.numZeroExperts(); // at most MAX_EXPERTS each
        if (logits > FusedMoeConfig.MAX_EXPERTS) {
            throw new IllegalArgumentException("router: expected at most " + FusedMoeConfig.MAX_EXPERTS
                    + " experts, zero experts included, got " + logits);
        }
        int groups = router.numExpertGroup();
        if (router.scoring() == ScoringFunction.SOFTMAX_EACH_GROUP
                && (groups < 1 || experts % groups != 0 || topK % groups != 0)) {
            throw new IllegalArgumentException("router: expected a number of groups that divides " + experts
                    + " experts and the " + topK + " of a token, got " + groups);
        }
        if (groups > 1 && logits % groups == 0 && logits > groups) {
            int candidates = router.topkGroup() * (logits / groups);
            if (topK > candidates) {
                throw new IllegalArgumentException("expertsPerToken: expected at most the " + candidates
                        + " experts of " + router.topkGroup() + " of " + groups + " groups, got " + topK);
            }
        }
        if (router.hasSharedExpertGate() && shared == 0) {
            throw new IllegalArgumentException("router: expected shared experts for its shared expert gate, got none");
        }
        if (router.normalizesShared() && shared == 0) {
            throw new IllegalArgumentException(
                    "router: expected shared experts, as it normalises their scores, got none");
        }
    }

    static void requireAtMost(String field, int value, String limit, int max) {
        if (value > max) {
            throw new IllegalArgumentException(field + ": expected at most " + limit + " = " + max + ", got " + value);
        }
    }

    /** Kernels index weights as int32 words of four int8 values, so a projection holds fewer than 2^31 of them. */
    static void requireAddressableWeights(String name, long experts, long rows, long cols) {
        double words = (double) experts * rows * ((cols + 15) / 16 * 4);
        if (words >= 0x1p31) {
            throw new IllegalArgumentException(String.format(
                    "%s [numExperts %d, rows %d, cols %d]: expected fewer than 2^33 int8 values, got %.0f; "
                            + "give the layer fewer experts (expert parallelism) or a part of the intermediate size "
                            + "(tensor parallelism)",
                    name, experts, rows, cols, words * 4));
        }
    }

    /** Kernels index the rows of all token-expert pairs by int. */
    static void requireAddressableRows(int tokens, int topK, long gateUp, int hidden) {
        long width = Math.max(gateUp, hidden);
        long most = Integer.MAX_VALUE / topK / width;
        if (tokens > most) {
            throw new IllegalArgumentException("maxNumTokens: expected at most " + most + " for expertsPerToken " + topK
                    + " and rows of " + width + " values (int indices), got " + tokens
                    + "; lower it and call the layer more often");
        }
    }

    /** Kernels index an expert's matrices of an adapter, and a call's pairs times the rank, by int. */
    static void requireAddressableAdapters(int rank, int shards, int width, int pairsPerToken, int tokens) {
        long widest = Math.max((long) shards * width, (long) shards * pairsPerToken * tokens);
        requireAtMost("maxLoraRank", rank, "2^31 - 1 by " + widest, (int) (Integer.MAX_VALUE / widest));
    }
}
