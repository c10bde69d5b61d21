package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class FusedMoeParallelConfigTest {
    /** The table of vLLM's {@code FusedMoEParallelConfig.make}, rank by rank. */
    @ParameterizedTest
    @CsvSource(textBlock = """
        # deployment tp size, rank, dp size, rank, expert parallel; then tp, dp and ep size and rank
        1, 0, 1, 0, false,   1, 0, 1, 0, 1, 0
        2, 0, 1, 0, false,   2, 0, 1, 0, 1, 0
        2, 1, 1, 0, false,   2, 1, 1, 0, 1, 0
        1, 0, 2, 0, false,   2, 0, 2, 0, 1, 0
        1, 0, 2, 1, false,   2, 1, 2, 1, 1, 0
        2, 0, 2, 0, false,   4, 0, 2, 0, 1, 0
        2, 1, 2, 0, false,   4, 1, 2, 0, 1, 0
        2, 0, 2, 1, false,   4, 2, 2, 1, 1, 0
        2, 1, 2, 1, false,   4, 3, 2, 1, 1, 0
        2, 0, 1, 0, true,    1, 0, 1, 0, 2, 0
        2, 1, 1, 0, true,    1, 0, 1, 0, 2, 1
        1, 0, 2, 1, true,    1, 0, 2, 1, 2, 1
        2, 0, 2, 0, true,    1, 0, 2, 0, 4, 0
        2, 1, 2, 0, true,    1, 0, 2, 0, 4, 1
        2, 0, 2, 1, true,    1, 0, 2, 1, 4, 2
        2, 1, 2, 1, true,    1, 0, 2, 1, 4, 3
        1, 0, 1, 0, true,    1, 0, 1, 0, 1, 0
        """)
    void allRanksShareTheLayer(
            int tpSize,
            int tpRank,
            int dpSize,
            int dpRank,
            boolean expertParallel,
            int layerTp,
            int layerTpRank,
            int layerDp,
            int layerDpRank,
            int ep,
            int epRank) {
        FusedMoeParallelConfig parallel = FusedMoeParallelConfig.builder()
                .tp(tpSize, tpRank)
                .dp(dpSize, dpRank)
                .expertParallel(expertParallel)
                .build();
        assertThat(parallel)
                .isEqualTo(new FusedMoeParallelConfig(
                        layerTp,
                        1,
                        layerDp,
                        ep,
                        layerTpRank,
                        0,
                        layerDpRank,
                        epRank,
                        1,
                        ep > 1,
                        "allgather_reducescatter",
                        false));
    }

    @Test
    void contextParallelRanksLieBetweenDataAndTensorRanks() {
        FusedMoeParallelConfig parallel = FusedMoeParallelConfig.builder()
                .tp(2, 1)
                .pcp(3, 2)
                .dp(2, 1)
                .expertParallel(true)
                .build();
        assertThat(parallel.epSize()).isEqualTo(12);
        assertThat(parallel.epRank()).isEqualTo(11);
        assertThat(parallel.pcpSize()).isEqualTo(3);
        assertThat(parallel.pcpRank()).isEqualTo(2);
    }

    @ParameterizedTest
    @CsvSource(textBlock = """
        # tp, pcp, dp, sp, expert parallel; whether tokens travel
        4, 1, 1, 1, true,  false
        1, 1, 2, 1, false, false
        1, 1, 2, 1, true,  true
        1, 2, 1, 1, true,  true
        2, 1, 1, 2, true,  true
        2, 1, 1, 2, false, false
        """)
    void tokensTravelBetweenRanksThatHaveTokensOfTheirOwn(
            int tp, int pcp, int dp, int sp, boolean ep, boolean expected) {
        FusedMoeParallelConfig parallel = FusedMoeParallelConfig.builder()
                .tp(tp, 0)
                .pcp(pcp, 0)
                .dp(dp, 0)
                .sp(sp)
                .expertParallel(ep)
                .build();
        assertThat(parallel.useAll2allKernels()).isEqualTo(expected);
        assertThat(parallel.isSequenceParallel()).isEqualTo(sp > 1);
    }

    @Test
    void eachAllToAllHasItsOwnPredicate() {
        FusedMoeParallelConfig two =
                FusedMoeParallelConfig.builder().dp(2, 0).expertParallel(true).build();
        for (String name : FusedMoeParallelConfig.ALL2ALL_BACKENDS) {
            FusedMoeParallelConfig parallel = two.withAll2allBackend(name);
            assertThat(parallel.useDeepepLlKernels()).isEqualTo(name.equals("deepep_low_latency"));
            assertThat(parallel.useNixlEpKernels()).isEqualTo(name.equals("nixl_ep"));
            assertThat(parallel.useFiNvlTwoSidedKernels())
                    .isEqualTo(name.equals("flashinfer_all2allv") || name.equals("flashinfer_nvlink_two_sided"));
            assertThat(parallel.useFiNvlOneSidedKernels()).isEqualTo(name.equals("flashinfer_nvlink_one_sided"));
            boolean batched = name.equals("deepep_low_latency") || name.equals("nixl_ep");
            assertThat(parallel.useBatchedActivationFormat()).isEqualTo(batched);
            assertThat(FusedMoeParallelConfig.NO_PARALLEL
                            .withAll2allBackend(name)
                            .useBatchedActivationFormat())
                    .isFalse();
        }
    }

    @Test
    void messagesShowItAsPythonDoes() {
        assertThat(FusedMoeParallelConfig.builder()
                        .dp(2, 1)
                        .expertParallel(true)
                        .build())
                .hasToString(
                        "FusedMoEParallelConfig(tp_size=1, pcp_size=1, dp_size=2, ep_size=2, tp_rank=0, pcp_rank=0,"
                                + " dp_rank=1, ep_rank=1, sp_size=1, use_ep=True,"
                                + " all2all_backend='allgather_reducescatter', enable_eplb=False)");
    }

    @Test
    void wrongSizesRanksAndNamesAreNamed() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder().tp(0, 0).build())
                .withMessage("tpSize: expected a positive number, got 0");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder().dp(2, 2).build())
                .withMessage("dpRank: expected 0 to 1, got 2");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder().pcp(2, -1).build())
                .withMessage("pcpRank: expected 0 to 1, got -1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder().sp(-1).build())
                .withMessage("spSize: expected a positive number, got -1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> FusedMoeParallelConfig.builder()
                        .all2allBackend("pigeons")
                        .build())
                .withMessageStartingWith("all2allBackend: expected one of [allgather_reducescatter, ")
                .withMessageEndingWith("got 'pigeons'");
    }

    /** Of the deployment, also where the layer's are others. */
    @Test
    void ranksOfTheDeploymentAreItsOwn() {
        FusedMoeParallelConfig.Builder ep = FusedMoeParallelConfig.builder().expertParallel(true);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ep.tp(2, 2).build())
                .withMessage("tpRank: expected 0 to 1, got 2");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ep.tp(4, 0).pcp(2, -1).build())
                .withMessage("pcpRank: expected 0 to 1, got -1");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ep.pcp(2, 1).dp(0, 0).build())
                .withMessage("dpSize: expected a positive number, got 0");
        assertThat(ep.dp(1, 0).eplb(true).build().enableEplb()).isTrue();
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 2147483647, true", "1, 3, 715827883, false", "2, 1, 1073741824, false", "65536, 32768, 1, false"
    })
    void ranksAreCountedByInt(int dp, int pcp, int tp, boolean fits) {
        FusedMoeParallelConfig.Builder builder =
                FusedMoeParallelConfig.builder().dp(dp, 0).pcp(pcp, 0).tp(tp, 0);
        if (fits) {
            assertThat(builder.build().tpSize()).isEqualTo(Integer.MAX_VALUE);
        } else {
            assertThatIllegalArgumentException()
                    .isThrownBy(builder::build)
                    .withMessage("dpSize * pcpSize * tpSize: expected fewer than 2^31 ranks, got " + dp + " * " + pcp
                            + " * " + tp);
        }
    }

    @ParameterizedTest
    @CsvSource({
        "2, 1, 1, 1, 2, 0, 0, 0, 'tpRank: expected 0 to 1, got 2'",
        "1, 2, 1, 1, 0, 2, 0, 0, 'pcpRank: expected 0 to 1, got 2'",
        "1, 1, 2, 1, 0, 0, 2, 0, 'dpRank: expected 0 to 1, got 2'",
        "1, 1, 1, 2, 0, 0, 0, 2, 'epRank: expected 0 to 1, got 2'"
    })
    void everyRankOfALayerIsBelowItsSize(
            int tp, int pcp, int dp, int ep, int tpRank, int pcpRank, int dpRank, int epRank, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new FusedMoeParallelConfig(
                        tp, pcp, dp, ep, tpRank, pcpRank, dpRank, epRank, 1, true, "nixl_ep", false))
                .withMessage(message);
    }
}
