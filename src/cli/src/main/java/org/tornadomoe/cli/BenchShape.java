package org.tornadomoe.cli;

import java.util.Arrays;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.ScalarType;

/** The sizes of a layer: E experts, I intermediate, H hidden, K experts per token. */
record BenchShape(String name, int experts, int intermediate, int hidden, int topK) {
    /** E, I, H and K of known models, and of a tiny one for the interpreter. */
    private static final Map<String, BenchShape> KNOWN = new LinkedHashMap<>();

    static {
        for (BenchShape shape : List.of(
                new BenchShape("mixtral-8x7b", 8, 14336, 4096, 2),
                new BenchShape("qwen3-30b-a3b", 128, 768, 2048, 8),
                new BenchShape("deepseek-v2-lite", 64, 1408, 2048, 6),
                new BenchShape("gpt-oss-20b", 32, 2880, 2880, 4),
                new BenchShape("deepseek-v3", 256, 2048, 7168, 8),
                new BenchShape("tiny", 8, 192, 128, 2))) {
            KNOWN.put(shape.name, shape);
        }
    }

    /** The known models' shapes. */
    static Collection<BenchShape> known() {
        return KNOWN.values();
    }

    /**
     * A known model's shape, or {@code E:I:H:K}.
     *
     * @throws IllegalArgumentException if the text is neither
     */
    static BenchShape of(String text) {
        BenchShape known = KNOWN.get(text);
        if (known != null) {
            return known;
        }
        if (!text.matches("\\d{1,9}(:\\d{1,9}){3}")) {
            throw new IllegalArgumentException(
                    "--shape: expected one of " + KNOWN.keySet() + " or sizes E:I:H:K, got '" + text + "'");
        }
        int[] sizes = Arrays.stream(text.split(":")).mapToInt(Integer::parseInt).toArray();
        return new BenchShape(text, sizes[0], sizes[1], sizes[2], sizes[3]);
    }

    /** A layer of these sizes. */
    FusedMoeConfig config(int maxTokens) {
        return config(maxTokens, ScalarType.F32);
    }

    /** @param hiddenType the type of hidden states and output */
    FusedMoeConfig config(int maxTokens, ScalarType hiddenType) {
        return FusedMoeConfig.builder()
                .inDtype(hiddenType)
                .numExperts(experts)
                .intermediateSize(intermediate)
                .hiddenDim(hidden)
                .expertsPerToken(topK)
                .maxNumTokens(maxTokens)
                .build();
    }
}
