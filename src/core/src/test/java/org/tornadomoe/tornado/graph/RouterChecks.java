package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.RoutingCases;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.Quirks;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** What must hold of the router's kernels on any device. */
public final class RouterChecks {
    private RouterChecks() {}

    /**
     * Every kind of router gives the reference's ids and weights: for logits with ties, for any, and for such that
     * aren't finite.
     *
     * @param rows of each of them
     * @param step 1 for every router, n for every n-th: each is compiled by itself
     */
    public static void choiceIsTheReferences(
            Device device, int experts, int topK, int shared, int zero, int rows, int step) {
        List<RouterConfig> routers = RoutingCases.routers(experts + zero, topK);
        for (int i = 0; i < routers.size(); i += step) {
            RouterConfig all = routers.get(i).withZeroExperts(zero);
            choiceIsTheReferences(device, experts, topK, shared, shared > 0 ? all.withSharedExpertGate() : all, rows);
        }
    }

    public static void choiceIsTheReferences(
            Device device, int experts, int topK, int shared, RouterConfig router, int rows) {
        int tokens = 3 * rows;
        FusedMoeConfig config = RandomLayer.of(experts, topK, 4, 4, tokens + 1, 1)
                .sharing(shared)
                .routedBy(router)
                .config();
        int choices = config.numChoices();
        int width = config.numRouterLogits();
        float[] logits = new float[tokens * width];
        float[] gates = RoutingCases.any(tokens, 5);
        List<float[]> kinds = List.of(
                RoutingCases.ties(rows * choices, 1),
                RoutingCases.any(rows * choices, 2),
                RoutingCases.special(rows, choices, 3));
        for (int m = 0; m < tokens; m++) {
            System.arraycopy(kinds.get(m / rows), m % rows * choices, logits, m * width, choices);
            if (width > choices) {
                logits[m * width + choices] = gates[m];
            }
        }
        RouterWeights weights = new RouterWeights(
                new float[0],
                null,
                router.hasCorrectionBias() ? RoutingCases.ties(choices, 4) : null,
                router.hasSharedExpertGate() ? new float[4] : null);
        try (LayerArrays arrays = arrays(config)) {
            arrays.setTokens(tokens);
            put(logits, arrays.work.logits);
            if (weights.correctionBias() != null) {
                put(weights.correctionBias(), arrays.weights.correctionBias);
            }
            StageRun.execute(device, "choice", Families.program(arrays).topK(), tokens);
            Routing expected = Router.route(config, weights, Numerics.widen(logits), tokens);
            int pairs = config.pairsPerToken();
            int[] ids = arrays.work.topkIds.toHeapArray();
            float[] actual = arrays.work.topkWeights.toHeapArray();
            for (int m = 0; m < tokens; m++) {
                int to = (m + 1) * pairs;
                assertThat(Arrays.copyOfRange(ids, m * pairs, to))
                        .as("%s: experts of token %d", router, m)
                        .isEqualTo(Arrays.copyOfRange(expected.ids(), m * pairs, to));
                for (int p = m * pairs; p < to; p++) {
                    double weight = expected.weights()[p];
                    assertThat((double) actual[p])
                            .as("%s: weight of token %d, slot %d", router, m, p - m * pairs)
                            .isCloseTo(weight, within(1e-5 * Math.max(1, Math.abs(weight))));
                }
            }
        }
    }

    /** Logits are the reference's, at sizes around those of a group, whatever the other tokens are. */
    public static void logitsAreTheReferences(Device device, int experts, int hidden, int tokens) {
        RandomLayer layer = RandomLayer.of(experts, 1, hidden, 4, tokens + 5, 7)
                .sharing(1)
                .routedBy(RouterConfig.topKThenSigmoid().withSharedExpertGate());
        FusedMoeConfig config = layer.config();
        int width = config.numRouterLogits();
        float[] x = layer.hidden(tokens, 1);
        float[] bias = RoutingCases.any(experts, 8);
        RouterWeights plain = layer.router();
        RouterWeights router = new RouterWeights(plain.weight(), bias, null, plain.sharedExpertGate());
        double[] expected = Router.logits(config, router, Numerics.widen(x), tokens);
        float[] alone = new float[width];
        for (int m : new int[] {1, tokens}) {
            try (LayerArrays arrays = arrays(config)) {
                put(bias, arrays.weights.routerBias);
                arrays.setTokens(m);
                put(x, arrays.work.hidden);
                arrays.work.logits.init(Float.NaN);
                StageRun.execute(device, "logits", Families.program(arrays).logits(), m);
                for (int i = 0; i < m * width; i++) {
                    assertThat((double) arrays.work.logits.get(i))
                            .as("logit %d of token %d", i % width, i / width)
                            .isCloseTo(expected[i], within(1e-5 * Math.sqrt(hidden) + 1e-6 * Math.abs(expected[i])));
                }
                if (!Quirks.HERE.zeroesOnAnotherStream(device.backend())) { // there what nobody writes is anything
                    assertThat(arrays.work.logits.get(m * width)).isNaN();
                }
                for (int i = 0; i < width; i++) {
                    if (m == 1) {
                        alone[i] = arrays.work.logits.get(i);
                    } else {
                        assertThat(arrays.work.logits.get(i))
                                .as("the same bits")
                                .isEqualTo(alone[i]);
                    }
                }
            }
        }
    }

    private static void put(float[] from, FloatArray into) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, from.length);
    }

    private static LayerArrays arrays(FusedMoeConfig config) {
        try (Int8Experts experts =
                Int8Quantizer.quantize(new RandomLayer(config, 7), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            return Families.arrays(config, experts, Long.MAX_VALUE, HostMemory.of(false));
        }
    }
}
