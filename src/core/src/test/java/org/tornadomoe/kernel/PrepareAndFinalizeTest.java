package org.tornadomoe.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
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
}
