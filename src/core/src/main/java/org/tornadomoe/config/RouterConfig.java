package org.tornadomoe.config;

import java.util.Objects;
import java.util.function.Consumer;

/**
 * How a router's logits become the ids and weights of a token's K experts; the layer defines K and E. The steps, in
 * order: compute scores from the logits; add a bias, for the choice only; choose the best groups of experts; choose the
 * K best experts of those (a tie goes to the lower id); divide their scores by their sum; multiply them by a factor.
 *
 * <p>{@link #method} gives vLLM's name for the whole method.
 *
 * @param scoring the function from logits to scores
 * @param scoresChosenOnly whether experts are chosen by their logits and only the chosen ones get scores: a softmax
 *     over the K (gpt-oss; the same numbers as a softmax over all, renormalised), the sigmoid of the top logit (Llama
 *     4)
 * @param renormalize whether the weights are divided by their sum
 * @param hasCorrectionBias whether a bias per expert ({@code e_score_correction_bias}) is added to the scores for the
 *     choice, but not to the weights
 * @param numExpertGroup number of groups of neighbouring experts, which are chosen first; 0 for none. A group's score
 *     is its experts' maximum score (DeepSeek-V2), or with a correction bias the sum of its two highest (DeepSeek-V3).
 *     1, and numbers that don't divide E or leave one expert per group, count as none
 * @param topkGroup number of groups chosen; 0 without groups
 * @param routedScalingFactor final factor of the weights, except those of shared experts
 * @param numZeroExperts number of zero experts, which return their token unchanged; their logits follow those of the
 *     experts (LongCat)
 * @param hasSharedExpertGate whether the weight of shared experts is a sigmoid gate of the token (Qwen2-MoE) instead of
 *     1
 * @param normalizesShared whether each shared expert has its own logit, and its score is normalised together with the
 *     chosen ones' (Inkling)
 * @param mixesShared whether routed experts' weights are multiplied by 1 minus the shared expert gate (Klear)
 * @param logitCap soft cap of the logits: {@code c * tanh(x / c)} (Laguna); 0 for none
 * @param readsOwnInput whether the router reads another input than the experts, which each call passes (SmallThinker's
 *     router reads a layer's input, before attention)
 */
public record RouterConfig(
        ScoringFunction scoring,
        boolean scoresChosenOnly,
        boolean renormalize,
        boolean hasCorrectionBias,
        int numExpertGroup,
        int topkGroup,
        double routedScalingFactor,
        int numZeroExperts,
        boolean hasSharedExpertGate,
        boolean normalizesShared,
        boolean mixesShared,
        double logitCap,
        boolean readsOwnInput) {
    /**
     * Checks what can be checked without E and K; {@link FusedMoeConfig} checks the rest.
     *
     * @throws IllegalArgumentException naming the field, what was expected and what came
     */
    public RouterConfig {
        Objects.requireNonNull(scoring, "scoring");
        requireAtMostExperts("numExpertGroup", numExpertGroup);
        if (numExpertGroup == 0 ? topkGroup != 0 : topkGroup < 1 || topkGroup > numExpertGroup) {
            throw new IllegalArgumentException("topkGroup: expected "
                    + (numExpertGroup == 0 ? "0 without groups" : "1 to numExpertGroup = " + numExpertGroup) + ", got "
                    + topkGroup);
        }
        if (!Double.isFinite(routedScalingFactor)) {
            throw new IllegalArgumentException(
                    "routedScalingFactor: expected a finite number, got " + routedScalingFactor);
        }
        requireAtMostExperts("numZeroExperts", numZeroExperts);
        if (scoresChosenOnly && (hasCorrectionBias || numExpertGroup > 0)) {
            throw new IllegalArgumentException(
                    "scoresChosenOnly: expected neither a correction bias nor groups beside it: the choice is made by"
                            + " logits");
        }
        if (!(logitCap >= 0 && Double.isFinite(logitCap))) {
            throw new IllegalArgumentException("logitCap: expected a positive number or 0, got " + logitCap);
        }
        if (normalizesShared && (!renormalize || hasSharedExpertGate || scoring == ScoringFunction.SOFTMAX)) {
            throw new IllegalArgumentException(
                    "normalizesShared: expected renormalize, no shared expert gate and scores of each logit by itself"
                            + " beside it");
        }
        if (mixesShared && !hasSharedExpertGate) {
            throw new IllegalArgumentException("mixesShared: expected a shared expert gate beside it, got none");
        }
        boolean attention = scoring == ScoringFunction.ATTENTION;
        if (attention && (numZeroExperts > 0 || hasSharedExpertGate || logitCap != 0)) {
            throw new IllegalArgumentException(
                    "scoring: expected neither zero experts, a shared expert gate nor a logit" + " cap beside "
                            + scoring);
        }
        boolean eachGroup = scoring == ScoringFunction.SOFTMAX_EACH_GROUP;
        if (handed(scoring) && (scoresChosenOnly || hasCorrectionBias || (numExpertGroup > 0 && !eachGroup))) {
            throw new IllegalArgumentException(
                    "scoring: expected neither a correction bias nor groups beside " + scoring + ", which chooses");
        }
        if (eachGroup && (numExpertGroup != topkGroup || numZeroExperts > 0)) {
            throw new IllegalArgumentException(
                    "scoring: expected all groups and no zero experts beside " + scoring + ", got " + topkGroup + " of "
                            + numExpertGroup + " groups and " + numZeroExperts + " zero experts");
        }
        if (readsOwnInput && (hasSharedExpertGate || normalizesShared)) {
            throw new IllegalArgumentException(
                    "readsOwnInput: expected weights of 1 for shared experts beside it, got others");
        }
    }

    private static void requireAtMostExperts(String field, int value) {
        if (value < 0) {
            throw new IllegalArgumentException(field + ": expected at least 0, got " + value);
        }
        if (value > FusedMoeConfig.MAX_EXPERTS) {
            throw new IllegalArgumentException(
                    field + ": expected at most " + FusedMoeConfig.MAX_EXPERTS + ", got " + value);
        }
    }

    private static boolean handed(ScoringFunction scoring) {
        return switch (scoring) {
            case SOFTMAX_EACH_GROUP, SPARSE_MIXER, ATTENTION, TOKEN_TABLE, NETWORK, CUSTOM, SIMULATED -> true;
            case SOFTMAX, SIGMOID, SQRTSOFTPLUS, IDENTITY -> false;
        };
    }

    /**
     * Whether the host computes ids and weights and passes them to the kernel: for the caller's own function, or a
     * method that no device implements.
     */
    public boolean isHandedIn() {
        return handed(scoring) || normalizesShared || mixesShared || logitCap != 0 || readsOwnInput;
    }

    /** Whether ids and weights follow from logits, on a device or on the host. */
    public boolean choosesByLogits() {
        return !isOfCaller() && scoring != ScoringFunction.TOKEN_TABLE && scoring != ScoringFunction.NETWORK;
    }

    /** Whether ids and weights come from the caller's own function or from a simulator. */
    public boolean isOfCaller() {
        return scoring == ScoringFunction.CUSTOM || scoring == ScoringFunction.SIMULATED;
    }

    /** The same, with the caller's own function for scores and choice. */
    public RouterConfig handedIn() {
        return with(router -> {
            router.scoring = ScoringFunction.CUSTOM;
            router.scoresChosenOnly = false;
            router.hasCorrectionBias = false;
            router.numExpertGroup = 0;
            router.topkGroup = 0;
            router.logitCap = 0;
            router.readsOwnInput = false;
        });
    }

    /** The K highest scores by that function of all logits, renormalised or not. */
    public static RouterConfig of(ScoringFunction scoring, boolean renormalize) {
        return new RouterConfig(scoring, false, renormalize, false, 0, 0, 1, 0, false, false, false, 0, false);
    }

    /** The same with a softmax, choosing the same number of experts from each of that many groups. */
    public RouterConfig ofEachGroup(int groups) {
        return with(router -> {
            router.scoring = ScoringFunction.SOFTMAX_EACH_GROUP;
            router.scoresChosenOnly = false;
            router.hasCorrectionBias = false;
            router.numExpertGroup = groups;
            router.topkGroup = groups;
            router.numZeroExperts = 0;
        });
    }

    /** The top K logits, then a softmax over them (gpt-oss, Granite). */
    public static RouterConfig topKThenSoftmax() {
        return of(ScoringFunction.SOFTMAX, true).with(router -> router.scoresChosenOnly = true);
    }

    /** The top K logits, then the sigmoid of each (Llama 4). */
    public static RouterConfig topKThenSigmoid() {
        return topKThenSigmoid(false);
    }

    /** The top K logits, then the sigmoid of each, renormalised or not. */
    public static RouterConfig topKThenSigmoid(boolean renormalize) {
        return of(ScoringFunction.SIGMOID, renormalize).with(router -> router.scoresChosenOnly = true);
    }

    /** The simplest router with that method. */
    public static RouterConfig of(RoutingMethodType method) {
        return switch (method) {
            case DEFAULT -> of(ScoringFunction.SOFTMAX, false);
            case RENORMALIZE -> topKThenSoftmax();
            case DEEPSEEK_V3 ->
                of(ScoringFunction.SIGMOID, true).withCorrectionBias().withGroups(1, 1);
            case LLAMA4 -> topKThenSigmoid();
            case RENORMALIZE_NAIVE -> of(ScoringFunction.SOFTMAX, true);
            case TOP_K -> of(ScoringFunction.IDENTITY, false);
            case SIGMOID_RENORM -> of(ScoringFunction.SIGMOID, true);
            case MINIMAX2 -> of(ScoringFunction.SIGMOID, true).withCorrectionBias();
            case SIGMOID -> of(ScoringFunction.SIGMOID, false);
            case UNSPECIFIED -> of(ScoringFunction.SOFTMAX, true).withCorrectionBias();
            case DEEPSEEK_V4 -> of(ScoringFunction.SQRTSOFTPLUS, true).withCorrectionBias();
            case CUSTOM -> of(ScoringFunction.CUSTOM, false);
            case SIMULATED -> of(ScoringFunction.SIMULATED, false);
        };
    }

    /**
     * vLLM's name for this way of routing; {@code UNSPECIFIED} if vLLM has no name for it, which doesn't mean
     * unsupported.
     */
    public RoutingMethodType method() {
        return switch (scoring) {
            case CUSTOM, SOFTMAX_EACH_GROUP, SPARSE_MIXER, ATTENTION, TOKEN_TABLE, NETWORK -> RoutingMethodType.CUSTOM;
            case SIMULATED -> RoutingMethodType.SIMULATED;
            case IDENTITY -> hasCorrectionBias || renormalize ? RoutingMethodType.UNSPECIFIED : RoutingMethodType.TOP_K;
            case SOFTMAX, SIGMOID, SQRTSOFTPLUS ->
                scoresChosenOnly
                        ? methodOfChosenOnly()
                        : RoutingMethodType.getRoutingMethodType(
                                scoring.toString(),
                                renormalize,
                                numExpertGroup,
                                hasCorrectionBias,
                                routedScalingFactor);
        };
    }

    private RoutingMethodType methodOfChosenOnly() {
        return switch (scoring) {
            case SOFTMAX -> RoutingMethodType.RENORMALIZE;
            case SIGMOID -> renormalize ? RoutingMethodType.SIGMOID_RENORM : RoutingMethodType.LLAMA4;
            default -> RoutingMethodType.UNSPECIFIED;
        };
    }

    public RouterConfig withCorrectionBias() {
        return with(router -> router.hasCorrectionBias = true);
    }

    public RouterConfig withGroups(int numExpertGroup, int topkGroup) {
        return with(router -> {
            router.numExpertGroup = numExpertGroup;
            router.topkGroup = topkGroup;
        });
    }

    public RouterConfig withRoutedScalingFactor(double factor) {
        return with(router -> router.routedScalingFactor = factor);
    }

    public RouterConfig withZeroExperts(int number) {
        return with(router -> router.numZeroExperts = number);
    }

    public RouterConfig withSharedExpertGate() {
        return with(router -> router.hasSharedExpertGate = true);
    }

    /** The same, with shared experts that have their own logits and are normalised together with the chosen ones. */
    public RouterConfig withNormalizedShared() {
        return with(router -> router.normalizesShared = true);
    }

    /** The same, with a shared expert gate of which routed experts get the rest. */
    public RouterConfig withMixedShared() {
        return with(router -> {
            router.hasSharedExpertGate = true;
            router.mixesShared = true;
        });
    }

    public RouterConfig withLogitCap(double cap) {
        return with(router -> router.logitCap = cap);
    }

    /** The same, with a router that reads another input than the experts. */
    public RouterConfig withOwnInput() {
        return with(router -> router.readsOwnInput = true);
    }

    /** A copy with a change. */
    private RouterConfig with(Consumer<Changed> change) {
        Changed changed = new Changed(this);
        change.accept(changed);
        return changed.toConfig();
    }

    /** A mutable copy of the components. */
    private static final class Changed {
        private ScoringFunction scoring;
        private boolean scoresChosenOnly;
        private final boolean renormalize;
        private boolean hasCorrectionBias;
        private int numExpertGroup;
        private int topkGroup;
        private double routedScalingFactor;
        private int numZeroExperts;
        private boolean hasSharedExpertGate;
        private boolean normalizesShared;
        private boolean mixesShared;
        private double logitCap;
        private boolean readsOwnInput;

        Changed(RouterConfig from) {
            scoring = from.scoring;
            scoresChosenOnly = from.scoresChosenOnly;
            renormalize = from.renormalize;
            hasCorrectionBias = from.hasCorrectionBias;
            numExpertGroup = from.numExpertGroup;
            topkGroup = from.topkGroup;
            routedScalingFactor = from.routedScalingFactor;
            numZeroExperts = from.numZeroExperts;
            hasSharedExpertGate = from.hasSharedExpertGate;
            normalizesShared = from.normalizesShared;
            mixesShared = from.mixesShared;
            logitCap = from.logitCap;
            readsOwnInput = from.readsOwnInput;
        }

        RouterConfig toConfig() {
            return new RouterConfig(
                    scoring,
                    scoresChosenOnly,
                    renormalize,
                    hasCorrectionBias,
                    numExpertGroup,
                    topkGroup,
                    routedScalingFactor,
                    numZeroExperts,
                    hasSharedExpertGate,
                    normalizesShared,
                    mixesShared,
                    logitCap,
                    readsOwnInput);
        }
    }
}
