package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.modular.FusedMoeExperts;
import org.tornadomoe.reference.ReferenceExperts;
import org.tornadomoe.tornado.TornadoPortableExperts;

/** Kernel classes that say so give a token the same bits, whatever tokens come with it. */
class BatchInvarianceTest {
    @Test
    void oneScaleOfAllTokensIsRefusedUnlessItIsKnownBeforehand() {
        RandomLayer layer = RandomLayer.of(5, 2, 70, 33, 19, 1);
        QuantKey weights = QuantKey.INT8_STATIC_TENSOR_SYM;
        for (FusedMoeExperts experts : List.of(new ReferenceExperts(), new TornadoPortableExperts())) {
            // The interpreter is a device only where it is asked for.
            RandomLayer here = experts instanceof ReferenceExperts ? layer : layer.on("interpreter:0");
            FusedMoeConfig config =
                    here.config().toBuilder().batchInvariant(true).build();
            assertThat(experts.isSupportedConfig(
                                    config, weights, QuantKey.INT8_DYNAMIC_TENSOR_SYM, config.activationFormat())
                            .reason())
                    .as(experts.name())
                    .isEqualTo("one scale of all tokens, found at run time, makes them depend on each other");
            assertThat(experts.isSupportedConfig(
                                    config, weights, QuantKey.INT8_STATIC_TENSOR_SYM, config.activationFormat())
                            .supported())
                    .as(experts.name())
                    .isTrue();
        }
    }

    @ParameterizedTest
    @CsvSource({
        "TornadoDp4aExperts, W8A8_CHANNEL",
        "TornadoPanelExperts, W8A8_CHANNEL",
        "TornadoPortableExperts, W8A8_CHANNEL",
        "TornadoPortableExperts, W8A16_CHANNEL",
        "ReferenceExperts, W8A8_CHANNEL",
        "ReferenceExperts, W8A16_CHANNEL"
    })
    void aTokensOutputDoesNotDependOnItsBatch(String kernelClass, Int8Scheme scheme) {
        RandomLayer weights = RandomLayer.of(5, 2, 70, 33, 19, 1);
        MoeOptions options = MoeOptions.DEFAULT
                .withScheme(scheme)
                .withKernelClass(kernelClass)
                .withMaxTokens(19);
        try (MoeLayer layer = MoeLayer.of(weights, options)) {
            float[] hidden = weights.hidden(19, 1);
            float[] together = layer.forward(hidden);
            for (int token = 0; token < 19; token++) {
                float[] alone = layer.forward(Arrays.copyOfRange(hidden, token * 70, (token + 1) * 70));
                assertThat(alone).isEqualTo(Arrays.copyOfRange(together, token * 70, (token + 1) * 70));
            }
        }
    }
}
