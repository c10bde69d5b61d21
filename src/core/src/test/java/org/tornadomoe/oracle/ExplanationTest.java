package org.tornadomoe.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.tornadomoe.oracle.Int8MoeOracleTest.A;
import static org.tornadomoe.oracle.Int8MoeOracleTest.NOTHING;
import static org.tornadomoe.oracle.Int8MoeOracleTest.W;
import static org.tornadomoe.oracle.Int8MoeOracleTest.cpu;
import static org.tornadomoe.oracle.Int8MoeOracleTest.demanding;
import static org.tornadomoe.oracle.Int8MoeOracleTest.layer;
import static org.tornadomoe.oracle.Int8MoeOracleTest.oracle;
import static org.tornadomoe.oracle.Int8MoeOracleTest.triton;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.FakeExperts.Predicate;
import org.tornadomoe.tuning.LaunchKey;
import org.tornadomoe.tuning.LaunchSpace;

/** What is said of the kernel classes that a layer could have. */
class ExplanationTest {
    @Test
    void theReferenceIsExplainedWhereItIsAskedFor() {
        FusedMoeConfig config = layer().moeBackend("reference").build();
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        Explanation explanation = oracle(triton(), reference).explain(config, W, A);
        assertThat(explanation.chosen()).isZero();
        assertThat(explanation.failure()).isNull();
        assertThat(explanation.candidates())
                .extracting(Explanation.Candidate::name)
                .containsExactly("Reference");
        FakeExperts refusing = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1, Predicate.SHAPE);
        Explanation refused = oracle(triton(), refusing).explain(config, W, A);
        assertThat(refused.chosen()).isEqualTo(-1);
        assertThat(refused.failure()).isEqualTo("kernel does not support 128 hidden dim is not supported");
        assertThat(refused.lastResort()).isNull();
        Explanation hopeless = oracle(triton(Predicate.SHAPE), refusing).explain(layer().build(), W, A);
        assertThat(hopeless.lastResort())
                .as("it doesn't support the layer either")
                .isNull();
    }

    @Test
    void aCandidateTellsDeviceMemoryAndLaunches() {
        DeviceMemory memory = new DeviceMemory(1, 2, 3);
        FakeExperts telling = new FakeExperts("Telling", Int8MoeBackend.TRITON, 1) {
            @Override
            public DeviceMemory memory(
                    FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
                return memory;
            }

            @Override
            public LaunchSpace launches(
                    FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
                return new LaunchSpace(
                        new LaunchKey(8, 64, "abacus", "int8_w8a8", null, "ptx", "dp4a"), List.of(), _ -> {
                            throw new UnsupportedOperationException();
                        });
            }
        };
        FakeExperts broken = new FakeExperts("Broken", Int8MoeBackend.TRITON, 2) {
            @Override
            public String device(FusedMoeConfig config) {
                throw new NoClassDefFoundError("driver");
            }

            @Override
            public boolean supportsCurrentDevice(FusedMoeConfig config) {
                throw new NoClassDefFoundError("driver");
            }

            @Override
            public DeviceMemory memory(
                    FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
                throw new NoClassDefFoundError("driver");
            }
        };
        List<Explanation.Candidate> candidates = oracle(telling, broken)
                .explain(layer().device("abacus:0").build(), W, A)
                .candidates();
        assertThat(candidates.getFirst().device()).isEqualTo("abacus:0 (Abacus)");
        assertThat(candidates.getFirst().memory()).isEqualTo(memory);
        assertThat(candidates.getFirst().launches()).isNotNull();
        assertThat(candidates.get(1).device()).as("as it was asked for").isEqualTo("abacus:0");
        assertThat(candidates.get(1).memory()).isNull();
        assertThat(candidates.get(1).launches()).isNull();
        assertThat(candidates.get(1).refusals())
                .extracting(Support::reason)
                .containsExactly("its check failed: java.lang.NoClassDefFoundError: driver");
    }

    @Test
    void everyCandidateIsExplained() {
        FakeExperts second = new FakeExperts("Second", Int8MoeBackend.TRITON, 2);
        FakeExperts first = triton(Predicate.ACTIVATION, Predicate.SHAPE);
        Explanation explanation = oracle(first, second).explain(layer().build(), W, A);
        assertThat(explanation.candidates())
                .extracting(Explanation.Candidate::name)
                .containsExactly("Triton", "Second", "CPU");
        assertThat(explanation.chosen()).isEqualTo(1);
        assertThat(explanation.taken()).isEqualTo(explanation.candidates().get(1));
        assertThat(explanation.failure()).isNull();
        assertThat(explanation.firstRefused())
                .isEqualTo(explanation.candidates().getFirst());
        assertThat(explanation.changes()).containsExactly("activation: one of [gelu]", "hidden dim: padded to 200");
        assertThat(explanation.candidates().get(2).support().reason()).isEqualTo("no kernel class fills this slot");
    }

    @Test
    void aRefusalIsExplainedToo() {
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        Explanation explanation =
                oracle(triton(Predicate.ROUTING_METHOD), reference).explain(layer().build(), W, A);
        assertThat(explanation.chosen()).isEqualTo(-1);
        assertThat(explanation.failure()).isEqualTo(NOTHING);
        assertThat(explanation.lastResort()).isEqualTo("Reference");
        assertThat(explanation.changes()).isEmpty();
        Explanation explicit = oracle(triton(Predicate.BIAS), reference)
                .explain(layer().moeBackend("triton").hasBias(true).build(), W, A);
        assertThat(explicit.failure())
                .isEqualTo("Int8 MoE backend TRITON does not support the deployment configuration since kernel does not"
                        + " support biases.");
        assertThat(explicit.lastResort()).isNull();
        assertThat(explicit.changes()).containsExactly("no biases");
        Explanation adapters = oracle(triton(Predicate.values())).explain(demanding(), W, A);
        assertThat(explicit.taken()).isNull();
        assertThat(adapters.chosen()).as("nothing is taken unseen").isEqualTo(-1);
        assertThat(adapters.firstRefused()).isEqualTo(adapters.candidates().getFirst());
    }

    /** With adapters, too, which vLLM's choice doesn't ask about. */
    @ParameterizedTest
    @CsvSource({"auto, false", "auto, true", "triton, false", "triton, true", "cpu, true", "reference, true"})
    void whatIsExplainedIsWhatIsLoaded(String backend, boolean lora) {
        FakeExperts reference = new FakeExperts("Reference", Int8MoeBackend.REFERENCE, 1);
        for (Int8MoeOracle oracle : List.of(
                Int8MoeOracle.installed(),
                oracle(triton(Predicate.LORA), cpu(), reference),
                oracle(triton(Predicate.SHAPE), cpu(), reference))) {
            for (Int8Scheme scheme : Int8Scheme.values()) {
                FusedMoeConfig config =
                        layer().moeBackend(backend).isLoraEnabled(lora).build();
                Explanation.Candidate taken = oracle.explain(config, scheme.weightKey(), scheme.activationKey())
                        .taken();
                if (taken == null) {
                    assertThatThrownBy(() -> oracle.select(config, scheme, null))
                            .isInstanceOf(UnsupportedOperationException.class);
                } else {
                    assertThat(taken.kernelClass())
                            .isEqualTo(oracle.select(config, scheme, null)
                                    .experts()
                                    .name());
                }
            }
        }
    }

    @Test
    void theChangesThatAreNamedAreEnough() {
        FusedMoeConfig config = layer().device("ptx:99").build();
        Explanation explanation = Int8MoeOracle.installed().explain(config, W, A);
        assertThat(explanation.chosen()).isEqualTo(-1);
        assertThat(explanation.changes()).containsExactly("device: one of [interpreter:0]");
        FusedMoeConfig changed = config.toBuilder().device("interpreter:0").build();
        assertThat(Int8MoeOracle.installed().explain(changed, W, A).chosen()).isNotNegative();
    }
}
