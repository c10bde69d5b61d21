package org.tornadomoe.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeActivationFormat;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.QuantKey;

class PrepareAndFinalizeTest {
    private static FusedMoeConfig config(int tp, int dp, boolean ep, String all2all) {
        return FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(16)
                .intermediateSize(8)
                .maxNumTokens(5)
                .moeParallelConfig(FusedMoeParallelConfig.builder()
                        .tp(tp, 0)
                        .dp(dp, 0)
                        .expertParallel(ep)
                        .all2allBackend(all2all)
                        .build())
                .build();
    }

    @ParameterizedTest
    @CsvSource({
        "1, 1, false, allgather_reducescatter, MoEPrepareAndFinalizeNoDPEPModular",
        "2, 1, true, allgather_reducescatter, MoEPrepareAndFinalizeNoDPEPModular",
        "2, 1, true, deepep_low_latency, MoEPrepareAndFinalizeNoDPEPModular",
        "1, 2, false, deepep_low_latency, MoEPrepareAndFinalizeNaiveDPEPModular",
        "1, 2, true, allgather_reducescatter, MoEPrepareAndFinalizeNaiveDPEPModular",
        "1, 2, true, deepep_high_throughput, MoEPrepareAndFinalizeNaiveDPEPModular",
        "1, 2, true, deepep_low_latency, BatchedPrepareAndFinalize",
        "1, 2, true, nixl_ep, BatchedPrepareAndFinalize"
    })
    void theParallelConfigurationDecides(int tp, int dp, boolean ep, String all2all, String className) {
        FusedMoeConfig config = config(tp, dp, ep, all2all);
        PrepareAndFinalize chosen = PrepareAndFinalize.of(config, QuantKey.INT8_DYNAMIC_TOKEN_SYM);
        assertThat(chosen.className()).isEqualTo(className);
        assertThat(chosen.activationFormat()).isEqualTo(config.activationFormat());
        assertThat(chosen.maxNumTokensPerRank(config)).isEqualTo(chosen == PrepareAndFinalize.BATCHED ? 5 : null);
    }

    @Test
    void oneSidedDispatchCarriesNoInt8() {
        FusedMoeConfig config = config(1, 2, true, "flashinfer_nvlink_one_sided");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> PrepareAndFinalize.of(config, QuantKey.INT8_DYNAMIC_TOKEN_SYM))
                .withMessage("flashinfer_nvlink_one_sided dispatch supports nvfp4, mxfp8, and bf16 (quant_dtype=None)"
                        + " today; got quant_dtype=torch.int8");
        assertThat(PrepareAndFinalize.of(config, null)).isEqualTo(PrepareAndFinalize.NAIVE_DP_EP);
    }

    @Test
    void whatExpertsLeaveIsDoneAfterThem() {
        for (PrepareAndFinalize kind : PrepareAndFinalize.values()) {
            assertThat(kind.weightAndReduce(TopKWeightAndReduce.NO_OP)).isEqualTo(TopKWeightAndReduce.NO_OP);
        }
        assertThat(PrepareAndFinalize.NO_DP_EP.weightAndReduce(TopKWeightAndReduce.DELEGATE))
                .isEqualTo(TopKWeightAndReduce.CONTIGUOUS);
        assertThat(PrepareAndFinalize.BATCHED.weightAndReduce(TopKWeightAndReduce.DELEGATE))
                .isEqualTo(TopKWeightAndReduce.NAIVE_BATCHED);
    }

    private static WorkspaceShapes shapes(
            FusedMoeActivationFormat format, int n, @Nullable Integer slots, @Nullable Integer dispatchers) {
        return WorkspaceShapes.of(format, 5, n, 6, 16, 2, 3, slots, dispatchers);
    }

    @Test
    void workspacesHaveVllmsShapes() {
        FusedMoeActivationFormat standard = FusedMoeActivationFormat.STANDARD;
        FusedMoeActivationFormat batched = FusedMoeActivationFormat.BATCHED_EXPERTS;
        assertThat(shapes(standard, 12, null, null))
                .isEqualTo(new WorkspaceShapes(List.of(5, 2, 16), List.of(5, 2, 6), List.of(5, 16)));
        assertThat(shapes(standard, 20, null, null).gemms()).containsExactly(5, 2, 20);
        assertThat(shapes(batched, 20, 7, 4))
                .isEqualTo(new WorkspaceShapes(List.of(3, 28, 20), List.of(3, 28, 6), List.of(5, 16)));
        assertThat(WorkspaceShapes.elements(List.of(1 << 20, 1 << 20))).isEqualTo(1L << 40);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> shapes(standard, 12, 7, null))
                .withMessage("max_num_tokens and num_dispatchers should only be set for BatchedExperts activation"
                        + " format.");
        for (WorkspaceArguments missing : List.of(new WorkspaceArguments(null, 1), new WorkspaceArguments(7, null))) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> shapes(batched, 12, missing.slots(), missing.dispatchers()))
                    .withMessage("max_num_tokens and num_dispatchers must be set for BatchedExperts activation"
                            + " format.");
        }
    }

    private record WorkspaceArguments(
            @Nullable Integer slots, @Nullable Integer dispatchers) {}
}
