package org.tornadomoe.tornado.graph;

import java.util.List;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.kernels.RouterKernels;

/** The choice of experts: logits, ids and weights, what of it is this device's, and what zero experts add. */
final class RouterStages {
    private final LayerArrays a;

    RouterStages(LayerArrays arrays) {
        a = arrays;
    }

    /** hidden, router → logits; none if the caller passes ids and weights. */
    List<Stage> logits() {
        if (!a.shape.routes) {
            return List.of();
        }
        int rows = a.shape.config.numRouterLogits();
        int h = a.shape.hidden;
        return List.of(KernelTask.stage(
                "routerLogits",
                RouterKernels.LOGIT_GROUP,
                m -> rows,
                m -> Math.ceilDiv(m, RouterKernels.LOGIT_TOKENS),
                t -> t.runs(
                        RouterKernels::routerLogits,
                        t.in(a.work.header),
                        t.in(a.work.hidden),
                        t.in(a.weights.router),
                        t.in(a.weights.routerBias),
                        t.out(a.work.logits),
                        h,
                        rows)));
    }

    /** logits → ids and weights, including shared experts'; none if the caller passes them. */
    List<Stage> topK() {
        RouterConfig router = a.shape.config.router();
        if (!a.shape.routes) {
            return List.of();
        }
        int experts = a.shape.config.numExperts();
        int choices = a.shape.config.numChoices();
        int shared = a.shape.config.numFusedSharedExperts();
        int k = a.shape.config.expertsPerToken();
        int scoring = scoring(router);
        int renormalize = renormalize(router);
        int biased = router.hasCorrectionBias() ? 1 : 0;
        int groups = router.numExpertGroup();
        int topkGroup = router.topkGroup();
        int gate = router.hasSharedExpertGate() ? 1 : 0;
        float factor = (float) router.routedScalingFactor();
        return List.of(KernelTask.stage(
                "topK",
                RouterKernels.TOP_K_GROUP,
                m -> m,
                t -> t.runs(
                        RouterKernels::topK,
                        t.in(a.work.header),
                        t.in(a.work.logits),
                        t.in(a.weights.correctionBias),
                        t.out(a.work.topkIds),
                        t.out(a.work.topkWeights),
                        experts,
                        choices,
                        shared,
                        k,
                        scoring,
                        renormalize,
                        biased,
                        groups,
                        topkGroup,
                        gate,
                        factor)));
    }

    /** The kernels' number of a scoring function. */
    static int scoring(RouterConfig router) {
        return switch (router.scoring()) {
            case SOFTMAX -> RouterKernels.SOFTMAX;
            case SIGMOID -> RouterKernels.SIGMOID;
            case SQRTSOFTPLUS -> RouterKernels.SQRTSOFTPLUS;
            case IDENTITY -> RouterKernels.IDENTITY;
            case SOFTMAX_EACH_GROUP, SPARSE_MIXER, ATTENTION, TOKEN_TABLE, NETWORK, CUSTOM, SIMULATED ->
                throw new IllegalArgumentException("scoring: expected what a kernel computes, got " + router.scoring());
        };
    }

    /** 1 where weights are divided by their sum; a softmax of the chosen alone is the same. */
    static int renormalize(RouterConfig router) {
        boolean softmaxOfChosen = router.scoresChosenOnly() && router.scoring() == ScoringFunction.SOFTMAX;
        return router.renormalize() || softmaxOfChosen ? 1 : 0;
    }

    /** ids → ids of this device's pairs; none if experts don't move. */
    List<Stage> place() {
        if (!a.shape.balanced) {
            return List.of();
        }
        int e = a.shape.experts;
        int k = a.shape.topK;
        return List.of(KernelTask.stage(
                "place",
                AlignKernels.SCATTER_GROUP,
                m -> Math.ceilDiv(m * k, AlignKernels.SCATTER_GROUP),
                t -> t.runs(
                        AlignKernels::place,
                        t.in(a.work.header),
                        t.in(a.work.topkIds),
                        t.in(a.work.replicas),
                        t.out(a.work.placedIds),
                        k,
                        e)));
    }

    /** output → output and what zero experts add, where the layer has any and they are here. */
    List<Stage> zeroExperts() {
        boolean here = a.hasExpert0 && a.shape.config.moeParallelConfig().tpRank() == 0;
        if (a.shape.config.router().numZeroExperts() == 0 || !here) {
            return List.of();
        }
        int pairs = a.shape.topK;
        int firstId = a.shape.experts;
        int h = a.shape.hidden;
        return List.of(KernelTask.stage(
                "zeroExperts",
                RouterKernels.GROUP,
                m -> KernelTask.elementGroups(m, h, RouterKernels.GROUP),
                t -> t.runs(
                        RouterKernels::addZeroExperts,
                        t.in(a.work.header),
                        t.in(a.work.placedIds),
                        t.in(a.work.topkWeights),
                        t.in(a.work.hidden),
                        t.inout(a.work.output),
                        pairs,
                        firstId,
                        h)));
    }
}
