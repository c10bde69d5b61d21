package org.tornadomoe.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RankWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/**
 * A layer over several devices, which here are the cores, the interpreter and the definition, some of them more than
 * once.
 */
@Timeout(120)
class ShardingTest {
    private static final int TOKENS = 13;
    private static final RandomLayer WEIGHTS = RandomLayer.of(5, 2, 64, 48, TOKENS, 7);
    private static final MoeOptions OPTIONS = MoeOptions.DEFAULT.withMaxTokens(TOKENS);

    private static List<String> times(int count, String device) {
        return Collections.nCopies(count, device);
    }

    private static double error(float[] output, double[] expected) {
        return Numerics.relativeL2(Numerics.widen(output), expected);
    }

    /** What vLLM's ranks make of it: each its own part by the definition, added. */
    private static double[] sumOfRanks(Int8Experts whole, int ranks, float[] hidden) {
        double[] sum = new double[hidden.length];
        for (int rank = 0; rank < ranks; rank++) {
            FusedMoeConfig config = whole.config().toBuilder()
                    .moeParallelConfig(
                            FusedMoeParallelConfig.builder().tp(ranks, rank).build())
                    .build();
            try (Int8Experts part = RankWeights.columns(whole, config)) {
                double[] output = Reference.forward(part, hidden, hidden.length / config.hiddenDim())
                        .output();
                for (int i = 0; i < sum.length; i++) {
                    sum[i] += output[i];
                }
            }
        }
        return sum;
    }

    @ParameterizedTest
    @CsvSource({
        "cpu, 2, true, 1",
        "cpu, 2, true, 13",
        "cpu, 5, true, 7",
        "cpu, 3, false, 13",
        "cpu, 8, false, 1",
        "triton, 3, true, 13",
        "triton, 2, false, 5",
        "reference, 4, true, 3",
        "reference, 2, false, 3"
    })
    void theOutputIsThatOfTheParts(String backend, int devices, boolean experts, int tokens) {
        String device = backend.equals("triton") ? "interpreter:0" : "cpu";
        float[] hidden = WEIGHTS.hidden(tokens, 1);
        ChosenExperts chosen = ChosenExperts.allocate(tokens, 2);
        float[] output = new float[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(WEIGHTS, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeLayer one = MoeLayer.of(whole, OPTIONS.withBackend(backend));
                MoeLayer layer = MoeLayer.of(
                        whole,
                        OPTIONS.withBackend(backend)
                                .withDevices(times(devices, device))
                                .withExpertParallel(experts))) {
            layer.forward(hidden, tokens, output, chosen);
            double[] unsplit = Reference.forward(whole, hidden, tokens).output();
            assertThat(error(output, experts ? unsplit : sumOfRanks(whole, devices, hidden)))
                    .isLessThan(2e-3);
            assertThat(error(output, unsplit)).isLessThan(experts ? 2e-3 : 3e-2);
            assertThat(layer.forward(hidden)).as("the same bits").isEqualTo(output);

            ChosenExperts alone = ChosenExperts.allocate(tokens, 2);
            one.forward(hidden, tokens, new float[hidden.length], alone);
            assertThat(chosen.ids()).isEqualTo(alone.ids());
            assertThat(chosen.weights()).isEqualTo(alone.weights());

            assertThat(layer.forward(new float[0])).isEmpty();
            assertThat(layer.parts()).hasSize(devices);
            assertThat(layer.parts().stream()
                            .mapToLong(MoeLayer.DevicePart::bytes)
                            .sum())
                    .isEqualTo(layer.deviceBytes());
            assertThat(layer.parts().stream()
                            .mapToInt(part -> part.experts() * part.intermediateSize())
                            .sum())
                    .isEqualTo(5 * 48);
            assertThat(layer.config().intermediateSize()).isEqualTo(48);
            assertThat(layer.config().moeParallelConfig()).isEqualTo(FusedMoeParallelConfig.NO_PARALLEL);
        }
    }

    /** Biases, shared experts and zero experts are added once, however the layer is sharded. */
    @ParameterizedTest
    @CsvSource({
        "W8A16_CHANNEL, true, 3",
        "W8A16_CHANNEL, false, 4",
        "W8A16_GROUP, false, 2",
        "W8A8_BLOCK, true, 6",
        "W8A8_BLOCK, false, 3"
    })
    void whatIsThereOnceIsAddedOnce(Int8Scheme scheme, boolean experts, int devices) {
        RandomLayer layer = WEIGHTS.withBiases()
                .activatedBy(MoeActivation.SWIGLUOAI)
                .sharing(1)
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).withZeroExperts(2));
        Int8Quantization quantization = switch (scheme) {
            case W8A16_GROUP -> Int8Quantization.of(scheme).withGrid(new GroupShape(1, 8));
            case W8A8_BLOCK -> Int8Quantization.of(scheme).withGrid(new GroupShape(8, 16));
            default -> Int8Quantization.of(scheme);
        };
        float[] hidden = layer.hidden(TOKENS, 2);
        try (Int8Experts whole = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                MoeLayer sharding = MoeLayer.of(
                        whole,
                        OPTIONS.withBackend("cpu")
                                .withDevices(times(devices, "cpu"))
                                .withExpertParallel(experts))) {
            assertThat(error(
                            sharding.forward(hidden),
                            Reference.forward(whole, hidden, TOKENS).output()))
                    .isLessThan(1e-6);
        }
    }

    /** Two kernel classes might choose differently, so the host does. */
    @Test
    void devicesOfDifferentKindsAgreeOnTheExperts() {
        float[] hidden = WEIGHTS.hidden(TOKENS, 3);
        ChosenExperts chosen = ChosenExperts.allocate(TOKENS, 2);
        float[] output = new float[hidden.length];
        try (Int8Experts whole = Int8Quantizer.quantize(WEIGHTS, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeLayer one = MoeLayer.of(whole, OPTIONS.withBackend("cpu"));
                MoeLayer layer = MoeLayer.of(whole, OPTIONS.withDevices(List.of("cpu", "interpreter", "cpu")))) {
            layer.forward(hidden, TOKENS, output, chosen);
            assertThat(error(output, Reference.forward(whole, hidden, TOKENS).output()))
                    .isLessThan(2e-3);
            ChosenExperts alone = ChosenExperts.allocate(TOKENS, 2);
            one.forward(hidden, TOKENS, new float[hidden.length], alone);
            assertThat(chosen.ids()).isEqualTo(alone.ids());
            assertThat(layer.backend()).isEqualTo("cpu, triton");
            assertThat(layer.kernelClass()).startsWith("CpuExperts, Tornado");
            assertThat(layer.device()).contains("cpu (", ", interpreter:0 (");
        }
    }

    @Test
    void aRouterOfTheCallersServesAllDevices() {
        float[] hidden = WEIGHTS.hidden(TOKENS, 4);
        MoeOptions options = OPTIONS.withBackend("cpu").withRouter((_, _, tokens, k, _) -> {
            ChosenExperts chosen = ChosenExperts.allocate(tokens, k);
            for (int p = 0; p < tokens * k; p++) {
                chosen.ids()[p] = (p + p / k) % 5;
                chosen.weights()[p] = 1f / (1 + p % k);
            }
            return chosen;
        });
        try (MoeLayer one = MoeLayer.of(WEIGHTS, options);
                MoeLayer layer = MoeLayer.of(WEIGHTS, options.withDevices(times(2, "cpu")))) {
            assertThat(error(layer.forward(hidden), Numerics.widen(one.forward(hidden))))
                    .isLessThan(1e-6);
        }
    }

    @ParameterizedTest
    @CsvSource({"F16, true", "BF16, false"})
    void hiddenStatesOf16Bits(ScalarType type, boolean experts) {
        float[] hidden = WEIGHTS.hidden(TOKENS, 5);
        MoeOptions options =
                OPTIONS.withScheme(Int8Scheme.W8A16_CHANNEL).withBackend("cpu").withHiddenType(type);
        try (MoeLayer one = MoeLayer.of(WEIGHTS, options);
                MoeLayer layer = MoeLayer.of(
                        WEIGHTS, options.withDevices(times(2, "cpu")).withExpertParallel(experts))) {
            assertThat(error(layer.forward(hidden), Numerics.widen(one.forward(hidden))))
                    .isLessThan(type == ScalarType.F16 ? 1e-3 : 8e-3);
        }
    }

    @ParameterizedTest
    @CsvSource({"true", "false"})
    void adaptersReachEveryDevice(boolean experts) {
        MoeOptions options = OPTIONS.withScheme(Int8Scheme.W8A16_CHANNEL)
                .withBackend("triton")
                .withLora(2, 3);
        LoraAdapter adapter = WEIGHTS.adapter(3, false);
        float[] hidden = WEIGHTS.hidden(3, 6);
        int[] slots = {-1, 1, 0};
        float[] expected = new float[hidden.length];
        float[] output = new float[hidden.length];
        try (MoeLayer one = MoeLayer.of(WEIGHTS, options.withMaxTokens(3));
                MoeLayer layer = MoeLayer.of(
                        WEIGHTS,
                        options.withMaxTokens(3)
                                .withDevices(times(2, "interpreter"))
                                .withExpertParallel(experts))) {
            float[] without = layer.forward(hidden);
            one.setAdapter(1, adapter);
            layer.setAdapter(1, adapter);
            one.forward(hidden, 3, expected, null, slots);
            layer.forward(hidden, 3, output, null, slots);
            assertThat(error(output, Numerics.widen(expected))).isLessThan(1e-5);
            assertThat(Arrays.copyOf(output, 64)).isEqualTo(Arrays.copyOf(without, 64));
            layer.removeAdapter(1);
            assertThat(layer.forward(hidden)).isEqualTo(without);
        }
    }

    /** Memory that only the caller's thread may touch, and virtual threads by the hundred. */
    @Test
    void anyThreadAndAnyMemoryWillDo() throws Exception {
        float[] hidden = WEIGHTS.hidden(TOKENS, 8);
        try (MoeLayer layer = MoeLayer.of(
                        WEIGHTS, OPTIONS.withBackend("cpu").withLanes(2).withDevices(times(2, "cpu")));
                Arena arena = Arena.ofConfined()) {
            assertThat(layer.lanes()).isEqualTo(2);
            float[] expected = layer.forward(hidden);
            MemorySegment out = arena.allocate(4L * hidden.length, 4);
            layer.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), TOKENS, out, null);
            assertThat(out.toArray(ValueLayout.JAVA_FLOAT)).isEqualTo(expected);
            try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
                List<Future<float[]>> calls = new ArrayList<>();
                for (int i = 0; i < 100; i++) {
                    calls.add(threads.submit(() -> layer.forward(hidden)));
                }
                for (Future<float[]> call : calls) {
                    assertThat(call.get()).isEqualTo(expected);
                }
            }
        }
        assertThat(Thread.getAllStackTraces().keySet().stream().map(Thread::getName))
                .filteredOn(name -> name.startsWith("moe-"))
                .isEmpty();
    }

    @Test
    void whatCannotBeShardedIsRefusedFirst() {
        assertThatThrownBy(() -> MoeLayer.of(WEIGHTS, OPTIONS.withDevices(times(6, "cpu"))))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("devices: expected at most one per expert, 5, got 6");
        assertThatThrownBy(() -> MoeLayer.of(
                        WEIGHTS, OPTIONS.withDevices(times(5, "cpu")).withExpertParallel(false)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("intermediateSize: expected a multiple of the tensor-parallel size 5, got 48");
        assertThatThrownBy(() -> MoeLayer.of(WEIGHTS, OPTIONS.withDevices(List.of("cpu", "cuda:9"))))
                .hasMessageContaining("cuda:9");
        RandomLayer rank = new RandomLayer(
                WEIGHTS.config().toBuilder()
                        .moeParallelConfig(
                                FusedMoeParallelConfig.builder().tp(2, 1).build())
                        .build(),
                1);
        assertThatThrownBy(() -> MoeLayer.of(rank, OPTIONS.withDevices(times(2, "cpu"))))
                .hasMessageContaining("already a rank's part");
    }

    // ---- a device that fails

    /** The cores under other names, of which one can be told to fail. */
    private static final class Fragile extends NamedCores {
        static final String BROKEN = "fragile:1";

        volatile boolean failing;
        volatile boolean failsToLoad;
        volatile boolean failsToClose;

        Fragile() {
            super("fragile");
        }

        @Override
        public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
            if (failsToLoad && device(config).equals(BROKEN)) {
                throw new MoeExecutionException("no context");
            }
            return new Kernel(config, experts) {
                @Override
                public void forward(
                        MemorySegment hidden,
                        int tokens,
                        MemorySegment output,
                        @Nullable ChosenExperts chosen,
                        int @Nullable [] slotOfToken) {
                    log.add(name + " on " + Thread.currentThread().getName());
                    if (failing && name.equals(BROKEN)) {
                        throw new MoeExecutionException("ran into a wall");
                    }
                    super.forward(hidden, tokens, output, chosen, slotOfToken);
                }

                @Override
                public void close() {
                    super.close();
                    if (failsToClose && name.equals(BROKEN)) {
                        throw new MoeExecutionException("will not let go");
                    }
                }
            };
        }
    }

    private static MoeKernel load(NamedCores cores) {
        Int8MoeOracle oracle = new Int8MoeOracle(List.of(cores));
        Int8Scheme scheme = Int8Scheme.W8A8_CHANNEL;
        Sharding sharding = Sharding.of(
                oracle, WEIGHTS.config(), scheme.weightKey(), scheme.activationKey(), null, cores.devices(), true);
        assertThat(sharding.memory(scheme.weightKey(), scheme.activationKey())).hasSize(3);
        try (Int8Experts whole = Int8Quantizer.quantize(WEIGHTS, scheme, Progress.NONE)) {
            return ShardedLayer.load(sharding, oracle, whole, (_, _, _) -> {});
        }
    }

    @Test
    void aFailureNamesItsDeviceAndLeavesTheOthersUsable() {
        Fragile fragile = new Fragile();
        float[] hidden = WEIGHTS.hidden(TOKENS, 9);
        float[] expected = new float[hidden.length];
        float[] output = new float[hidden.length];
        try (MoeKernel kernel = load(fragile)) {
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(expected), null, null);
            assertThat(fragile.log)
                    .containsExactlyInAnyOrder(IntStream.range(0, 3)
                            .mapToObj(i -> "fragile:" + i + " on moe-" + i + " fragile:" + i)
                            .toArray(String[]::new));
            fragile.log.clear();

            fragile.failing = true;
            Arrays.fill(output, -1);
            assertThatThrownBy(() -> kernel.forward(
                            MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, null))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessage("fragile:1: ran into a wall");
            assertThat(fragile.log).hasSize(3);
            assertThat(output).containsOnly(-1);

            fragile.failing = false;
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, null);
            assertThat(output).isEqualTo(expected);
            fragile.log.clear();
        }
        assertThat(fragile.log).containsExactlyInAnyOrder("fragile:0 closed", "fragile:1 closed", "fragile:2 closed");
    }

    @Test
    void aDeviceThatCannotLoadFreesThoseThatDid() {
        Fragile fragile = new Fragile();
        fragile.failsToLoad = true;
        assertThatThrownBy(() -> load(fragile))
                .isInstanceOf(MoeExecutionException.class)
                .hasMessage("fragile:1: no context");
        assertThat(fragile.log).containsExactly("fragile:0 closed");
    }

    @Test
    void aDeviceThatCannotCloseStopsNoOther() {
        Fragile fragile = new Fragile();
        fragile.failsToClose = true;
        MoeKernel kernel = load(fragile);
        assertThatThrownBy(kernel::close).hasMessage("fragile:1: will not let go");
        assertThat(fragile.log).hasSize(3);
    }

    @Test
    void anInterruptDuringACallIsKeptUntilAllDevicesAreThrough() throws Exception {
        float[] hidden = WEIGHTS.hidden(TOKENS, 10);
        float[] output = new float[hidden.length];
        try (MoeKernel kernel = load(new Fragile())) {
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, null);
            float[] again = new float[hidden.length];
            Thread.currentThread().interrupt();
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(again), null, null);
            assertThat(Thread.interrupted()).isTrue();
            assertThat(again).isEqualTo(output);
        }
    }

    // ---- devices that bring their outputs together themselves

    enum Sum {
        NONE,
        THE_HOSTS,
        ANOTHER,
        FAILS,
        FAILS_UNEXPECTEDLY
    }

    /** The cores under other names, which add what they compute themselves, in some way. */
    private static final class Joining extends NamedCores {
        private final Sum sum;
        volatile boolean failing;
        volatile boolean failsToClose;

        Joining(Sum sum) {
            super("joining");
            this.sum = sum;
        }

        @Override
        public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
            return new Kernel(config, experts) {
                @Override
                public @Nullable MoeKernel joinedWith(List<MoeKernel> others) {
                    log.add(name + " joined with "
                            + others.stream().map(MoeKernel::device).toList());
                    return sum == Sum.NONE ? null : new Together(this, others);
                }

                @Override
                public void close() {
                    super.close();
                    if (failsToClose) {
                        throw new MoeExecutionException("will not let go");
                    }
                }
            };
        }

        private final class Together implements MoeKernel {
            private final MoeKernel first;
            private final List<MoeKernel> others;

            Together(MoeKernel first, List<MoeKernel> others) {
                this.first = first;
                this.others = others;
            }

            @Override
            public void forward(
                    MemorySegment hidden,
                    int tokens,
                    MemorySegment output,
                    @Nullable ChosenExperts chosen,
                    int @Nullable [] slotOfToken) {
                log.add("together on " + Thread.currentThread().getName());
                if (failing || sum == Sum.FAILS) {
                    throw new MoeExecutionException("joining:2: no way there");
                }
                if (sum == Sum.FAILS_UNEXPECTEDLY) {
                    throw new IllegalStateException("not this time");
                }
                first.forward(hidden, tokens, output, chosen, null);
                float[] part = new float[tokens * WEIGHTS.config().hiddenDim()];
                for (MoeKernel other : others) {
                    other.forward(hidden, tokens, MemorySegment.ofArray(part), chosen, null);
                    for (int i = 0; i < part.length; i++) {
                        float value = output.getAtIndex(ValueLayout.JAVA_FLOAT, i) + part[i];
                        output.setAtIndex(ValueLayout.JAVA_FLOAT, i, sum == Sum.ANOTHER ? value + 1e-3f : value);
                    }
                }
            }

            @Override
            public String device() {
                return "together";
            }

            @Override
            public long deviceBytes() {
                return 100;
            }

            @Override
            public void close() {
                log.add("together closed");
                if (failsToClose || sum == Sum.FAILS) {
                    throw new MoeExecutionException("they stick together");
                }
            }
        }
    }

    @ParameterizedTest
    @EnumSource
    void devicesAddTheirOutputsIfTheSumIsTheHosts(Sum sum) {
        Joining joining = new Joining(sum);
        float[] hidden = WEIGHTS.hidden(TOKENS, 11);
        List<float[]> outputs = new ArrayList<>();
        List<String> calls = new ArrayList<>();
        try (MoeKernel kernel = load(joining)) {
            ChosenExperts chosen =
                    ChosenExperts.allocate(TOKENS, WEIGHTS.config().pairsPerToken());
            for (int call = 0; call < 3; call++) {
                outputs.add(new float[hidden.length]);
                kernel.forward(
                        MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(outputs.getLast()), chosen, null);
            }
            assertThat(outputs.get(1)).isEqualTo(outputs.get(0));
            assertThat(outputs.get(2)).isEqualTo(outputs.get(0));
            assertThat(chosen.ids()).containsAnyOf(1, 2, 3);
            assertThat(kernel.bytesByDevice()).containsExactly(sum == Sum.THE_HOSTS ? 101L : 1L, 1L, 1L);
            calls.addAll(joining.log);
            joining.log.clear();
        }
        String caller = "together on " + Thread.currentThread().getName();
        List<String> expected = new ArrayList<>(List.of("joining:0 joined with [joining:1, joining:2]"));
        switch (sum) {
            case NONE -> {}
            case THE_HOSTS -> expected.addAll(List.of(caller, caller, caller));
            case ANOTHER, FAILS, FAILS_UNEXPECTEDLY -> expected.addAll(List.of(caller, "together closed"));
        }
        assertThat(calls).isEqualTo(expected);
        if (sum == Sum.THE_HOSTS) {
            assertThat(joining.log.getFirst()).isEqualTo("together closed");
        }
        assertThat(joining.log).contains("joining:0 closed", "joining:1 closed", "joining:2 closed");
    }

    /** What brings them together first; then every device, whatever failed before. */
    @Test
    void whatFailsToCloseKeepsNothingOpen() {
        Joining joining = new Joining(Sum.THE_HOSTS);
        MoeKernel kernel = load(joining);
        float[] hidden = WEIGHTS.hidden(TOKENS, 11);
        kernel.forward(
                MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(new float[hidden.length]), null, null);
        joining.log.clear();
        joining.failsToClose = true;
        assertThatThrownBy(kernel::close)
                .hasMessage("they stick together")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .singleElement()
                        .satisfies(second -> {
                            assertThat(second).hasMessage("joining:0: will not let go");
                            assertThat(second.getSuppressed())
                                    .extracting(Throwable::getMessage)
                                    .containsExactly("joining:1: will not let go", "joining:2: will not let go");
                        }));
        assertThat(joining.log)
                .containsExactlyInAnyOrder(
                        "together closed", "joining:0 closed", "joining:1 closed", "joining:2 closed");
    }

    @Test
    void aFailureWhileDevicesAddNamesItsDeviceAndTheNextCallUsesAll() {
        Joining joining = new Joining(Sum.THE_HOSTS);
        float[] hidden = WEIGHTS.hidden(TOKENS, 12);
        float[] expected = new float[hidden.length];
        float[] output = new float[hidden.length];
        try (MoeKernel kernel = load(joining)) {
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(expected), null, null);

            joining.failing = true;
            Arrays.fill(output, -1);
            assertThatThrownBy(() -> kernel.forward(
                            MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, null))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessage("joining:2: no way there");
            assertThat(output).containsOnly(-1);

            joining.failing = false;
            joining.log.clear();
            kernel.forward(MemorySegment.ofArray(hidden), TOKENS, MemorySegment.ofArray(output), null, null);
            assertThat(output).isEqualTo(expected);
            assertThat(joining.log)
                    .containsExactly("together on " + Thread.currentThread().getName());
        }
    }
}
