package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.Int8Scheme;

/** Kernel classes that say so give a token the same bits, whatever tokens come with it. */
class BatchInvarianceTest {
    @ParameterizedTest
    @CsvSource({
        "TornadoDp4aExperts, W8A8_CHANNEL",
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
