package org.tornadomoe.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.TopKRouter;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** Layers whose experts move between devices, which here are the cores and the interpreter, more than once. */
@Timeout(120)
@Tag("hot")
class LoadBalancingTest {
    private static final EplbConfig EPLB =
            EplbConfig.DEFAULT.withWindowSize(4).withStepInterval(8).withUseAsync(false);
    private static final MoeOptions OPTIONS = MoeOptions.DEFAULT.withBackend("cpu");

    private static List<String> times(int count, String device) {
        return Collections.nCopies(count, device);
    }

    private static double error(float[] output, double[] expected) {
        return Numerics.relativeL2(Numerics.widen(output), expected);
    }

    /** Experts by Zipf's law, from the middle on, the nth with the weight 1 / n; other ones for each call. */
    private static TopKRouter zipf(int experts) {
        AtomicInteger calls = new AtomicInteger();
        return (_, _, tokens, k, _) -> {
            SplittableRandom random = new SplittableRandom(calls.getAndIncrement());
            ChosenExperts chosen = ChosenExperts.allocate(tokens, k);
            Arrays.fill(chosen.weights(), 1f / k);
            for (int m = 0; m < tokens; m++) {
                boolean[] taken = new boolean[experts];
                for (int slot = 0; slot < k; slot++) {
                    chosen.ids()[m * k + slot] = (draw(random, taken) + experts / 2) % experts;
                }
            }
            return chosen;
        };
    }

    private static int draw(SplittableRandom random, boolean[] taken) {
        double left = 0;
        for (int e = 0; e < taken.length; e++) {
            left += taken[e] ? 0 : 1.0 / (e + 1);
        }
        double at = random.nextDouble() * left;
        int last = -1;
        for (int e = 0; e < taken.length; e++) {
            if (!taken[e]) {
                last = e;
                at -= 1.0 / (e + 1);
                if (at < 0) {
                    break;
                }
            }
        }
        taken[last] = true;
        return last;
    }

    /** All tokens of a call go to the K experts from that on which their first value is. */
    private static ChosenExperts told(float[] hidden, int tokens, int k, int experts) {
        ChosenExperts chosen = ChosenExperts.allocate(tokens, k);
        for (int p = 0; p < tokens * k; p++) {
            chosen.ids()[p] = ((int) hidden[0] + p % k) % experts;
            chosen.weights()[p] = 1f / (1 + p % k);
        }
        return chosen;
    }

    @ParameterizedTest
    @CsvSource({"2, 64, 2, 16", "4, 64, 4, 16", "3, 30, 1, 15", "8, 128, 8, 32"})
    void zipfsLoadIsEven(int devices, int experts, int topK, int redundant) {
        int tokens = 256;
        RandomLayer weights = RandomLayer.of(experts, topK, 16, 8, tokens, 3);
        float[] hidden = weights.hidden(tokens, 1);
        EplbConfig eplb = EPLB.withWindowSize(16).withStepInterval(32).withNumRedundantExperts(redundant);
        try (MoeLayer layer = MoeLayer.of(
                weights,
                OPTIONS.withMaxTokens(tokens)
                        .withRouter(zipf(experts))
                        .withDevices(times(devices, "cpu"))
                        .withLoadBalancing(eplb))) {
            for (int step = 0; step < 7; step++) {
                layer.forward(hidden);
            }
            ExpertBalance before = Objects.requireNonNull(layer.balance());
            assertThat(before.rearrangements()).isZero();
            assertThat(1 / before.balancedness()).isGreaterThan(1.3);
            layer.forward(hidden);
            for (int step = 0; step < 31; step++) {
                layer.forward(hidden);
            }
            ExpertBalance after = Objects.requireNonNull(layer.balance());
            assertThat(after.rearrangements()).isEqualTo(1);
            assertThat(after.refusal()).isNull();
            assertThat(after.loads().stream().mapToLong(Long::longValue).sum()).isEqualTo(31L * tokens * topK);
            assertThat(1 / after.balancedness()).as("%s", after.loads()).isLessThan(1.15);
            for (int device = 0; device < devices; device++) {
                assertThat(after.experts().get(device))
                        .doesNotHaveDuplicates()
                        .hasSizeLessThanOrEqualTo((experts + redundant) / devices)
                        .hasSize(layer.parts().get(device).experts());
            }
            assertThat(after.experts().stream().flatMap(List::stream).distinct())
                    .hasSize(experts);
        }
    }

    /** Whatever the layer has goes with its experts, and is there once. */
    @ParameterizedTest
    @CsvSource({
        "cpu, 2, 0, W8A8_CHANNEL",
        "cpu, 3, 3, W8A16_CHANNEL",
        "cpu, 2, 4, W8A8_BLOCK",
        "reference, 3, 3, W8A8_CHANNEL",
        "interpreter, 2, 0, W8A8_CHANNEL",
        "interpreter, 3, 3, W8A16_CHANNEL"
    })
    void allOfAnExpertMoves(String device, int devices, int redundant, Int8Scheme scheme) {
        RandomLayer weights = RandomLayer.of(11, 2, 64, 48, 9, 7)
                .withBiases()
                .sharing(1)
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).withZeroExperts(2));
        float[] hidden = weights.hidden(9, 2);
        try (Int8Experts whole = Int8Quantizer.quantize(weights, scheme, Progress.NONE);
                MoeLayer layer = MoeLayer.of(
                        whole,
                        MoeOptions.DEFAULT
                                .withMaxTokens(9)
                                .withBackend(device.equals("interpreter") ? "triton" : device)
                                .withDevices(times(devices, device.equals("reference") ? "cpu" : device))
                                .withLoadBalancing(EPLB.withNumRedundantExperts(redundant)))) {
            double[] expected = Reference.forward(whole, hidden, 9).output();
            List<float[]> outputs = new ArrayList<>();
            List<Integer> rearrangements = new ArrayList<>();
            for (int step = 0; step < 6; step++) {
                rearrangements.add(Objects.requireNonNull(layer.balance()).rearrangements());
                outputs.add(layer.forward(hidden));
                assertThat(error(outputs.getLast(), expected)).isLessThan(device.equals("interpreter") ? 2e-3 : 1e-6);
            }
            assertThat(rearrangements).containsExactly(0, 0, 1, 1, 1, 1);
            for (int step = 1; step < 6; step++) {
                if (rearrangements.get(step).equals(rearrangements.get(step - 1))) {
                    assertThat(outputs.get(step)).as("the same bits").isEqualTo(outputs.get(step - 1));
                }
            }
            ChosenExperts chosen = ChosenExperts.allocate(9, 3);
            float[] again = new float[hidden.length];
            layer.forward(hidden, 9, again, chosen);
            assertThat(again).isEqualTo(outputs.getLast());
            assertThat(chosen.ids())
                    .isEqualTo(Reference.forward(whole, hidden, 9).routing().ids());
        }
    }

    @Test
    void devicesOfDifferentKinds() {
        RandomLayer weights = RandomLayer.of(6, 2, 64, 48, 9, 8);
        float[] hidden = weights.hidden(9, 3);
        try (Int8Experts whole = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeLayer layer = MoeLayer.of(
                        whole,
                        MoeOptions.DEFAULT
                                .withMaxTokens(9)
                                .withDevices(List.of("cpu", "interpreter"))
                                .withLoadBalancing(EPLB))) {
            double[] expected = Reference.forward(whole, hidden, 9).output();
            for (int step = 0; step < 5; step++) {
                assertThat(error(layer.forward(hidden), expected)).isLessThan(2e-3);
            }
            assertThat(Objects.requireNonNull(layer.balance()).rearrangements()).isEqualTo(1);
        }
    }

    /** Where a token has one expert, its output is one device's, wherever that expert is. */
    @Test
    void withOneExpertATokenAMoveChangesNoBit() {
        RandomLayer weights = RandomLayer.of(8, 1, 64, 48, 32, 9);
        float[] hidden = weights.hidden(32, 4);
        try (MoeLayer layer = MoeLayer.of(
                weights,
                OPTIONS.withMaxTokens(32)
                        .withDevices(times(2, "cpu"))
                        .withLoadBalancing(EPLB.withNumRedundantExperts(4)))) {
            float[] before = layer.forward(hidden);
            layer.forward(hidden);
            assertThat(Objects.requireNonNull(layer.balance()).rearrangements()).isEqualTo(1);
            assertThat(layer.forward(hidden)).isEqualTo(before);
        }
    }

    /** Callers go on while experts move; each gets the layer's output, of one placement or of the other. */
    @ParameterizedTest
    @ValueSource(ints = {2, 3})
    void callsGoOnWhileExpertsMove(int devices) throws Exception {
        int experts = 12;
        int tokens = 16;
        RandomLayer weights = RandomLayer.of(experts, 2, 64, 48, tokens, 5);
        MoeOptions options =
                OPTIONS.withMaxTokens(tokens).withRouter((hidden, _, count, k, _) -> told(hidden, count, k, experts));
        EplbConfig eplb =
                EplbConfig.DEFAULT.withWindowSize(3).withStepInterval(5).withNumRedundantExperts(devices * 2);
        try (MoeLayer one = MoeLayer.of(weights, options);
                MoeLayer layer = MoeLayer.of(
                        weights, options.withDevices(times(devices, "cpu")).withLoadBalancing(eplb))) {
            for (int phase = 0; phase < 6; phase++) {
                float[] hidden = weights.hidden(tokens, phase);
                hidden[0] = 2 * phase;
                double[] expected = Numerics.widen(one.forward(hidden));
                int moved = Objects.requireNonNull(layer.balance()).rearrangements();
                try (ExecutorService threads = Executors.newFixedThreadPool(4)) {
                    List<Future<Integer>> callers = new ArrayList<>();
                    for (int caller = 0; caller < 4; caller++) {
                        callers.add(threads.submit(() -> {
                            int calls = 0;
                            // A placement that suits this input already stays.
                            while (calls < 100
                                    && Objects.requireNonNull(layer.balance()).rearrangements() == moved) {
                                assertThat(error(layer.forward(hidden), expected))
                                        .isLessThan(1e-6);
                                calls++;
                            }
                            return calls;
                        }));
                    }
                    for (Future<Integer> caller : callers) {
                        caller.get();
                    }
                }
            }
            assertThat(Objects.requireNonNull(layer.balance()).rearrangements()).isGreaterThanOrEqualTo(2);
        }
        assertThat(Thread.getAllStackTraces().keySet().stream().map(Thread::getName))
                .filteredOn(name -> name.startsWith("moe-"))
                .isEmpty();
    }

    @Test
    void whatCannotBeBalancedIsRefusedByName() {
        RandomLayer weights = RandomLayer.of(6, 2, 64, 48, 9, 8);
        MoeOptions options = OPTIONS.withDevices(times(2, "cpu")).withLoadBalancing(EPLB);
        assertThatThrownBy(() -> MoeLayer.of(weights, options.withDevice("cpu")))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("devices: expected several with load balancing, got [cpu]");
        assertThatThrownBy(() -> MoeLayer.of(weights, options.withExpertParallel(false)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("expertParallel: expected true with load balancing");
        assertThatThrownBy(() -> MoeLayer.of(weights, options.withLora(2, 4)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("maxLoras: expected 0 with load balancing");
        for (int redundant : new int[] {1, 8}) {
            assertThatThrownBy(() ->
                            MoeLayer.of(weights, options.withLoadBalancing(EPLB.withNumRedundantExperts(redundant))))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage(
                            "numRedundantExperts: expected 0 to 6 that make the 6 experts a multiple of 2 devices, got "
                                    + redundant);
        }
    }

    // ---- devices that fail, or are full

    /** The cores under other names, with as much memory as is said, of which one can be told to load nothing more. */
    private static final class Narrow extends NamedCores {
        static final int EXPERT_BYTES = 100;

        volatile boolean failing;
        volatile boolean refusing;
        volatile long limit = Long.MAX_VALUE;

        Narrow() {
            super("narrow");
        }

        @Override
        public DeviceMemory memory(
                FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
            int bytes = EXPERT_BYTES * config.numLocalExperts();
            return new DeviceMemory(bytes, bytes, 0);
        }

        @Override
        public long memoryLimit(FusedMoeConfig config) {
            return limit;
        }

        @Override
        public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
            String name = device(config);
            if (failing && name.equals("narrow:1")) {
                throw new MoeExecutionException("out of luck");
            }
            log.add(name + " loaded");
            int bytes = EXPERT_BYTES * experts.w13().experts();
            return new Kernel(config, experts) {
                @Override
                public long deviceBytes() {
                    return bytes;
                }

                @Override
                public void setReplicas(Replicas replicas) {
                    if (refusing && name.equals("narrow:1")) {
                        refusing = false;
                        throw new MoeExecutionException("narrow:1 takes no more");
                    }
                    super.setReplicas(replicas);
                }
            };
        }
    }

    /**
     * Six experts on three devices, two copies more than fit without; the first two experts are what everybody wants.
     */
    private static final class Popular implements AutoCloseable {
        final RandomLayer weights = RandomLayer.of(6, 2, 64, 48, 8, 2)
                .routedBy(RouterConfig.of(ScoringFunction.SOFTMAX, true).handedIn());
        final Int8Experts whole = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
        final float[] hidden = weights.hidden(8, 1);
        final MoeKernel kernel;

        Popular(Narrow narrow) {
            Int8MoeOracle oracle = new Int8MoeOracle(List.of(narrow));
            Int8Scheme scheme = Int8Scheme.W8A8_CHANNEL;
            Sharding sharding = Sharding.of(
                    oracle,
                    weights.config(),
                    scheme.weightKey(),
                    scheme.activationKey(),
                    null,
                    narrow.devices(),
                    true,
                    EPLB.withNumRedundantExperts(3));
            assertThat(sharding.memory(scheme.weightKey(), scheme.activationKey()))
                    .allSatisfy(memory ->
                            assertThat(Objects.requireNonNull(memory).bytes()).isEqualTo(300));
            kernel = ShardedLayer.load(sharding, oracle, whole, (_, _, _) -> {});
        }

        float[] call() {
            float[] output = new float[hidden.length];
            float[] told = hidden.clone();
            told[0] = 0;
            kernel.forward(MemorySegment.ofArray(hidden), 8, MemorySegment.ofArray(output), told(told, 8, 2, 6), null);
            return output;
        }

        ExpertBalance balance() {
            return Objects.requireNonNull(ShardedLayer.balance(kernel));
        }

        @Override
        public void close() {
            kernel.close();
            whole.close();
        }
    }

    @Test
    void aDeviceThatCannotLoadLeavesExpertsWhereTheyAre() {
        Narrow narrow = new Narrow();
        try (Popular layer = new Popular(narrow)) {
            float[] output = layer.call();
            narrow.log.clear();
            narrow.failing = true;
            List<List<Integer>> before = layer.balance().experts();
            assertThat(layer.call()).isEqualTo(output);
            assertThat(layer.balance().refusal()).isEqualTo("narrow:1: out of luck");
            assertThat(layer.balance().experts()).isEqualTo(before);
            assertThat(layer.balance().rearrangements()).isZero();
            assertThat(narrow.log).containsExactly("narrow:0 loaded", "narrow:0 closed");
            narrow.failing = false;
            for (int step = 0; step < 8; step++) {
                assertThat(layer.call()).isEqualTo(output);
            }
            assertThat(layer.balance().rearrangements()).isEqualTo(1);
            assertThat(layer.balance().refusal()).isNull();
            assertThat(error(layer.call(), Numerics.widen(output))).isLessThan(1e-6);
            narrow.log.clear();
        }
        assertThat(narrow.log).containsExactlyInAnyOrder("narrow:0 closed", "narrow:1 closed", "narrow:2 closed");
    }

    /** When all has been loaded, and some devices have been told already. */
    @Test
    void aDeviceThatCannotChangeOverLeavesExpertsWhereTheyAre() {
        Narrow narrow = new Narrow();
        try (Popular layer = new Popular(narrow)) {
            float[] output = layer.call();
            List<List<Integer>> before = layer.balance().experts();
            narrow.log.clear();
            narrow.refusing = true;
            assertThat(layer.call()).isEqualTo(output);
            assertThat(layer.balance().refusal()).isEqualTo("narrow:1 takes no more");
            assertThat(layer.balance().experts()).isEqualTo(before);
            assertThat(layer.balance().rearrangements()).isZero();
            // What was loaded is closed again, and nothing else.
            assertThat(narrow.log)
                    .filteredOn(event -> event.endsWith("closed"))
                    .isNotEmpty()
                    .containsExactlyInAnyOrderElementsOf(narrow.log.stream()
                            .filter(event -> event.endsWith("loaded"))
                            .map(event -> event.replace("loaded", "closed"))
                            .toList());
            for (int step = 0; step < 8; step++) {
                assertThat(layer.call()).isEqualTo(output);
            }
            assertThat(layer.balance().rearrangements()).isEqualTo(1);
            assertThat(error(layer.call(), Numerics.widen(output))).isLessThan(1e-6);
            narrow.log.clear();
        }
        assertThat(narrow.log).containsExactlyInAnyOrder("narrow:0 closed", "narrow:1 closed", "narrow:2 closed");
    }

    @Test
    void whatDoesNotFitBesideTheOldIsLeftOut() {
        Narrow narrow = new Narrow();
        narrow.limit = 500;
        try (Popular layer = new Popular(narrow)) {
            float[] output = layer.call();
            narrow.log.clear();
            assertThat(layer.call()).isEqualTo(output);
            assertThat(layer.balance().refusal())
                    .isEqualTo("narrow:0 would need 600 bytes of memory during the move, 300 for the new experts beside"
                            + " 300, and has 500");
            assertThat(narrow.log).isEmpty();
            narrow.limit = 600;
            for (int step = 0; step < 8; step++) {
                assertThat(layer.call()).isEqualTo(output);
            }
            assertThat(layer.balance().rearrangements()).isEqualTo(1);
        }
    }

    /** Where nothing would be more even, nothing moves; nor does what is on a device already. */
    @Test
    void onlyWhatChangesIsLoaded() {
        Narrow narrow = new Narrow();
        try (Popular layer = new Popular(narrow)) {
            List<List<Integer>> before = layer.balance().experts();
            narrow.log.clear();
            layer.call();
            layer.call();
            List<List<Integer>> after = layer.balance().experts();
            assertThat(layer.balance().rearrangements()).isEqualTo(1);
            for (int device = 0; device < 3; device++) {
                boolean changed = !Set.copyOf(before.get(device)).equals(Set.copyOf(after.get(device)));
                assertThat(narrow.log.contains("narrow:" + device + " loaded")).isEqualTo(changed);
                assertThat(narrow.log.contains("narrow:" + device + " closed")).isEqualTo(changed);
            }
            narrow.log.clear();
            for (int step = 0; step < 16; step++) {
                layer.call();
            }
            assertThat(layer.balance().rearrangements()).isEqualTo(1);
            assertThat(narrow.log).isEmpty();
        }
    }
}
