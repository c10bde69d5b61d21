package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Stages;

/** Sums of int8 products are exact, also those beyond 2^24, where floats leave integers out. */
class ExactSumTest {
    private static final int H = 4129;
    private static final int I = 6;
    private static final int TOKENS = 3;

    @Test
    void sumsAreExactBeyondTheIntegersOfFloats() {
        RandomLayer layer = RandomLayer.of(2, 1, H, I, TOKENS, 1);
        FusedMoeConfig config = layer.config();
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = Int8Tensor.allocate(arena, 2, 2 * I, H);
        Int8Tensor w2 = Int8Tensor.allocate(arena, 2, H, I);
        byte[] row = new byte[H];
        for (int e = 0; e < 2; e++) {
            for (int r = 0; r < 2 * I; r++) {
                for (int c = 0; c < H; c++) {
                    row[c] = (byte) (127 - (c * (r + 2) + e) % 3);
                }
                w13.setRow(e, r, row, 0, 1);
            }
            for (int r = 0; r < H; r++) {
                w2.setRow(e, r, new byte[] {1, 2, 3, 4, 5, 6}, 0, 1);
            }
        }
        float[] hidden = new float[TOKENS * H];
        for (int i = 0; i < hidden.length; i++) {
            hidden[i] = 127 - i % 5; // a scale of 1, and the values as they are
        }
        try (Int8Experts experts = Int8Experts.of(config, Int8Scheme.W8A8_CHANNEL, w13, w2, layer.router(), arena)) {
            Stages expected = Reference.forward(experts, hidden, TOKENS);
            StageValues given = LayerChecks.values(expected, 2);
            assertThat(given.a1Scales()).containsOnly(1);
            for (double sum : expected.gemm1()) {
                assertThat(sum).isGreaterThan(1 << 25);
            }
            for (TornadoExperts kernels :
                    List.of(new TornadoDp4aExperts(), new TornadoPanelExperts(), new TornadoPortableExperts())) {
                float[] gemm1 =
                        kernels.stages(config, experts, hidden, TOKENS, given).gemm1();
                assertThat(gemm1).as(kernels.name()).isEqualTo(given.gemm1());
            }
        }
    }
}
