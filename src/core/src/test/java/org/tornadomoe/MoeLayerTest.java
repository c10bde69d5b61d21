package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

class MoeLayerTest {
    private static final RandomLayer WEIGHTS = RandomLayer.of(7, 2, 24, 12, 64, 11);
    private static final MoeOptions OPTIONS = MoeOptions.DEFAULT.withMaxTokens(16);

    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void arraysAndSegmentsGiveTheSame(String backend) {
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withBackend(backend));
                Arena arena = Arena.ofConfined()) {
            float[] hidden = WEIGHTS.hidden(9, 1);
            float[] output = layer.forward(hidden);
            assertThat(output).hasSameSizeAs(hidden).doesNotContain(Float.NaN);

            MemorySegment nativeOutput = arena.allocate(4L * hidden.length + 4);
            nativeOutput.set(ValueLayout.JAVA_FLOAT, 4L * hidden.length, 42f);
            layer.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), 9, nativeOutput, null);
            float[] roomy = nativeOutput.toArray(ValueLayout.JAVA_FLOAT);
            assertThat(roomy).startsWith(output).endsWith(42f);

            float[] heap = new float[hidden.length];
            layer.forward(MemorySegment.ofArray(hidden), 9, MemorySegment.ofArray(heap), null);
            assertThat(heap).isEqualTo(output);

            ChosenExperts chosen = ChosenExperts.allocate(16, 2);
            float[] fewer = new float[3 * 24];
            layer.forward(hidden, 3, fewer, chosen);
            assertThat(output).startsWith(fewer);
            for (int token = 0; token < 3; token++) {
                assertThat(chosen.weights()[2 * token] + chosen.weights()[2 * token + 1])
                        .isBetween(0.9999f, 1.0001f);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"triton", "cpu", "reference"})
    void memoryThatTheLayerAllocatesIsMemoryForItsCalls(String backend) {
        MoeOptions options = OPTIONS.withBackend(backend).withHiddenType(ScalarType.BF16);
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, options);
                Arena arena = Arena.ofConfined()) {
            MemorySegment hidden = layer.allocate(9, arena);
            MemorySegment output = layer.allocate(16, arena);
            assertThat(hidden.byteSize()).isEqualTo(2 * 9 * 24);
            assertThat(output.byteSize()).isEqualTo(2 * 16 * 24);
            assertThat(layer.allocate(0, arena).byteSize()).isZero();
            assertThat(output.toArray(ValueLayout.JAVA_SHORT)).containsOnly((short) 0);
            float[] values = WEIGHTS.hidden(9, 1);
            HiddenStates.write(ScalarType.BF16, values, values.length, hidden);
            layer.forward(hidden, 9, output, null);
            float[] got = new float[values.length];
            HiddenStates.read(ScalarType.BF16, output, got, got.length);
            assertThat(got).isEqualTo(layer.forward(values));
            for (int wrong : new int[] {-1, 17}) {
                assertThatThrownBy(() -> layer.allocate(wrong, arena))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessage("tokens: expected 0 to 16, got " + wrong);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void adaptersAreSwitchedOnAndOff(String backend) {
        float[] hidden = WEIGHTS.hidden(4, 1);
        int[] slots = {1, 0, -1, 1};
        MoeOptions options = OPTIONS.withBackend(backend);
        try (MoeLayer plain = MoeLayer.of(WEIGHTS, options);
                MoeLayer layer = MoeLayer.of(WEIGHTS, options.withLora(2, 3))) {
            float[] without = plain.forward(hidden);
            assertThat(layer.forward(hidden)).isEqualTo(without);
            assertThat(adapted(layer, hidden, slots)).as("empty slots").isEqualTo(without);
            layer.setAdapter(1, WEIGHTS.adapter(3, false));
            float[] with = adapted(layer, hidden, slots);
            for (int m = 0; m < 4; m++) {
                assertThat(Arrays.equals(with, 24 * m, 24 * (m + 1), without, 24 * m, 24 * (m + 1)))
                        .as("token %d", m)
                        .isEqualTo(slots[m] != 1);
            }
            assertThat(layer.forward(hidden)).as("a call without slots").isEqualTo(without);
            layer.enableAdapter(1, false);
            assertThat(adapted(layer, hidden, slots)).isEqualTo(without);
            layer.enableAdapter(1, true);
            assertThat(adapted(layer, hidden, slots)).isEqualTo(with);

            assertThatThrownBy(() -> layer.enableAdapter(0, true))
                    .hasMessage("slot: expected one with an adapter, 0 is empty");
            assertThatThrownBy(() -> layer.setAdapter(2, WEIGHTS.adapter(3, false)))
                    .hasMessage("slot: expected 0 to 1 (MoeOptions.withLora), got 2");
            assertThatThrownBy(() -> layer.setAdapter(0, WEIGHTS.adapter(4, false)))
                    .hasMessage("rank: expected 1 to 3 (the most that the layer was loaded for), got 4");
            assertThatThrownBy(() -> adapted(layer, hidden, new int[] {0, 0, -2, 0}))
                    .hasMessage("slotOfToken[2]: expected 0 to 1 (MoeOptions.withLora), got -2");
            assertThatThrownBy(() -> adapted(layer, hidden, new int[3]))
                    .hasMessage("slotOfToken: expected a slot for each of the 4 tokens, got 3");
            assertThatThrownBy(() -> adapted(plain, hidden, slots))
                    .hasMessage("slotOfToken[0]: expected none, the layer has no room for adapters"
                            + " (MoeOptions.withLora), got 1");
            layer.removeAdapter(1);
            assertThat(adapted(layer, hidden, slots)).isEqualTo(without);
        }
    }

    private static float[] adapted(MoeLayer layer, float[] hidden, int[] slots) {
        float[] output = new float[hidden.length];
        layer.forward(hidden, 4, output, null, slots);
        return output;
    }

    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void aRouterOfTheCallersTakesThePlaceOfTheLayers(String backend) {
        // The layer's own way of choosing, written down once more: the same output, through another door.
        TopKRouter same = (hidden, logits, tokens, topK, renormalize) -> {
            assertThat(hidden).hasSize(24 * tokens);
            Routing routing = Router.route(WEIGHTS.config(), RouterWeights.NONE, Numerics.widen(logits), tokens);
            ChosenExperts chosen = ChosenExperts.allocate(tokens, topK);
            for (int p = 0; p < tokens * topK; p++) {
                chosen.ids()[p] = routing.ids()[p];
                chosen.weights()[p] = (float) routing.weights()[p];
            }
            assertThat(renormalize).isTrue();
            return chosen;
        };
        TopKRouter wrong = (hidden, logits, tokens, topK, renormalize) ->
                new ChosenExperts(topK, new int[tokens * topK], new float[tokens * topK]);
        MoeOptions options = OPTIONS.withBackend(backend);
        float[] hidden = WEIGHTS.hidden(9, 1);
        ChosenExperts chosen = ChosenExperts.allocate(9, 2);
        ChosenExperts expected = ChosenExperts.allocate(9, 2);
        float[] output = new float[hidden.length];
        float[] expectedOutput = new float[hidden.length];
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, options.withRouter(same));
                MoeLayer own = MoeLayer.of(WEIGHTS, options);
                MoeLayer broken = MoeLayer.of(WEIGHTS, options.withRouter(wrong))) {
            assertThat(layer.config().routingMethod()).isEqualTo(RoutingMethodType.CUSTOM);
            layer.forward(hidden, 9, output, chosen);
            own.forward(hidden, 9, expectedOutput, expected);
            assertThat(chosen.ids()).isEqualTo(expected.ids());
            assertThat(Numerics.relativeL2(Numerics.widen(output), Numerics.widen(expectedOutput)))
                    .isLessThan(2e-3);
            refuses(() -> broken.forward(hidden), "router: expected ids from 0 to 6", "got 0 again for token 0");
        }
        RandomLayer custom = WEIGHTS.routedBy(RoutingMethodType.CUSTOM);
        refuses(
                () -> MoeLayer.of(custom, options),
                "router: expected one in the options, since the layer's is CUSTOM, got none");
    }

    /** As a rank may have none while the others have some. */
    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void noTokensAreNoWork(String backend) {
        TopKRouter never = (hidden, logits, tokens, topK, renormalize) -> {
            throw new IllegalStateException("asked to route nothing");
        };
        MoeOptions options = OPTIONS.withBackend(backend);
        for (MoeOptions each : List.of(options, options.withRouter(never), options.withLora(1, 2))) {
            MoeLayer layer = MoeLayer.of(WEIGHTS, each);
            assertThat(layer.forward(new float[0])).isEmpty();
            float[] output = {1, 2};
            ChosenExperts chosen = ChosenExperts.allocate(1, 2);
            layer.forward(new float[0], 0, output, chosen);
            if (each.maxLoras() > 0) {
                layer.forward(new float[0], 0, output, null, new int[0]);
            }
            assertThat(output).containsExactly(1, 2);
            assertThat(chosen.ids()).containsExactly(0, 0);
            layer.close();
            assertThatThrownBy(() -> layer.forward(new float[0])).hasMessage("the layer is closed");
        }
    }

    @Test
    void wrongArgumentsAreNamedAndChangeNothing() {
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS)) {
            float[] hidden = WEIGHTS.hidden(2, 1);
            float[] output = new float[hidden.length];
            refuses(
                    () -> layer.forward(new float[25]),
                    "hidden: expected a multiple of the hidden size 24 values, got 25");
            refuses(() -> layer.forward(new float[17 * 24]), "tokens: expected 0 to 16", "got 17");
            refuses(() -> run(layer, hidden, -1, output, null), "tokens: expected 0 to 16", "got -1");
            refuses(() -> run(layer, hidden, 3, new float[72], null), "hidden: expected at least 72 floats", "got 48");
            refuses(() -> run(layer, hidden, 2, new float[47], null), "output: expected at least 48 floats", "got 47");
            refuses(
                    () -> run(layer, hidden, 2, output, ChosenExperts.allocate(1, 2)),
                    "chosen: expected room for 2 tokens");
            refuses(
                    () -> run(layer, hidden, 2, output, ChosenExperts.allocate(2, 3)),
                    "chosen: expected room for 2 tokens");
            refuses(
                    () -> {
                        layer.forward(
                                MemorySegment.ofArray(hidden),
                                2,
                                MemorySegment.ofArray(output).asReadOnly(),
                                null);
                        return null;
                    },
                    "output: expected memory that can be written");
            assertThat(output).containsOnly(0f);
        }
    }

    private static Object run(
            MoeLayer layer, float[] hidden, int tokens, float[] output, @Nullable ChosenExperts chosen) {
        layer.forward(hidden, tokens, output, chosen);
        return output;
    }

    private static void refuses(Callable<?> call, String... parts) {
        assertThatThrownBy(call::call)
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContainingAll(parts);
    }

    @Test
    void unknownNamesAreRefusedWithWhatThereIs() {
        refuses(() -> MoeLayer.of(WEIGHTS, OPTIONS.withBackend("cuda")), "triton", "reference", "cuda");
        refuses(() -> MoeLayer.of(WEIGHTS, OPTIONS.withDevice("ptx:9")), "interpreter:0", "ptx:9");
        refuses(() -> OPTIONS.withMaxTokens(0), "maxTokens", "got 0");
        assertThatThrownBy(() -> MoeLayer.of(
                        WEIGHTS,
                        OPTIONS.withScheme(Int8Scheme.W8A16_CHANNEL)
                                .withBackend("triton")
                                .withKernelClass("TornadoDp4aExperts")))
                .isInstanceOf(UnsupportedOperationException.class)
                .hasMessageContaining("TornadoDp4aExperts: kernel does not support quantization scheme");
    }

    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void afterCloseThereIsAMessageAndASecondCloseIsNothing(String backend) {
        MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withBackend(backend));
        float[] hidden = WEIGHTS.hidden(1, 1);
        layer.forward(hidden);
        layer.close();
        layer.close();
        assertThatThrownBy(() -> layer.forward(hidden))
                .isInstanceOf(IllegalStateException.class)
                .hasMessage("the layer is closed");
    }

    @ParameterizedTest
    @ValueSource(strings = {"triton", "reference"})
    void callersOfOneLayerDoNotDisturbEachOther(String backend) throws Exception {
        try (MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS.withBackend(backend));
                ExecutorService threads = Executors.newFixedThreadPool(4)) {
            List<float[]> inputs = new ArrayList<>();
            List<float[]> expected = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                inputs.add(WEIGHTS.hidden(1 + i, i));
                expected.add(layer.forward(inputs.get(i)));
            }
            List<Future<float[]>> results = new ArrayList<>();
            for (int round = 0; round < 4; round++) {
                for (float[] input : inputs) {
                    results.add(threads.submit(() -> layer.forward(input)));
                }
            }
            for (int i = 0; i < results.size(); i++) {
                assertThat(results.get(i).get()).isEqualTo(expected.get(i % 8));
            }
        }
    }

    @Test
    void lanesOfTheCpuShareTheWeights() throws Exception {
        MoeOptions options = OPTIONS.withBackend("cpu");
        try (MoeLayer plain = MoeLayer.of(WEIGHTS, options);
                MoeLayer layer = MoeLayer.of(WEIGHTS, options.withLanes(3));
                ExecutorService threads = Executors.newFixedThreadPool(4)) {
            assertThat(layer.lanes()).isEqualTo(3);
            assertThat(layer.deviceBytes()).isBetween(plain.deviceBytes() + 1, 3 * plain.deviceBytes() - 1);
            for (int round = 0; round < 50; round++) {
                float[] hidden = WEIGHTS.hidden(1 + round % 16, round);
                float[] expected = plain.forward(hidden);
                List<Future<float[]>> results = new ArrayList<>();
                for (int i = 0; i < 8; i++) {
                    results.add(threads.submit(() -> layer.forward(hidden)));
                }
                for (Future<float[]> result : results) {
                    assertThat(result.get()).isEqualTo(expected);
                }
            }
        }
        try (MoeLayer device =
                MoeLayer.of(WEIGHTS, OPTIONS.withBackend("triton").withLanes(3))) {
            assertThat(device.lanes()).as("a plan can't share its weights").isEqualTo(1);
        }
    }

    @Test
    void closingWaitsForTheCallsUnderWay() throws Exception {
        for (int round = 0; round < 5; round++) {
            MoeLayer layer = MoeLayer.of(WEIGHTS, OPTIONS);
            float[] hidden = WEIGHTS.hidden(16, round);
            float[] expected = layer.forward(hidden);
            try (ExecutorService threads = Executors.newFixedThreadPool(3)) {
                List<Future<float[]>> results = new ArrayList<>();
                for (int i = 0; i < 6; i++) {
                    results.add(threads.submit(() -> layer.forward(hidden)));
                }
                layer.close();
                for (Future<float[]> result : results) {
                    try {
                        assertThat(result.get()).isEqualTo(expected);
                    } catch (ExecutionException late) {
                        assertThat(late.getCause())
                                .isInstanceOf(IllegalStateException.class)
                                .hasMessage("the layer is closed");
                    }
                }
            }
        }
    }

    /** Of more than a core copies alone, and only this thread may touch it. */
    @Test
    void aConfinedArenaMayBeLarge() {
        int tokens = 65;
        RandomLayer weights = RandomLayer.of(1, 1, 4096, 4, tokens, 11);
        float[] hidden = weights.hidden(tokens, 1);
        try (MoeLayer layer = MoeLayer.of(
                        weights, MoeOptions.DEFAULT.withBackend("triton").withMaxTokens(tokens));
                Arena arena = Arena.ofConfined()) {
            MemorySegment output = arena.allocate(4L * hidden.length, 4);
            layer.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), tokens, output, null);
            assertThat(output.toArray(ValueLayout.JAVA_FLOAT)).isEqualTo(layer.forward(hidden));
        }
    }
}
