package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;

/** Whether a token's bits depend on the other tokens of its call, or on how many they are. */
public final class BatchChecks {
    private BatchChecks() {}

    /** What a class says of batch invariance, with one scale of all activations known beforehand. */
    public static Support support(FusedMoeExperts experts, RandomLayer layer, Int8Quantization quantization) {
        boolean tensor = quantization.scheme() == Int8Scheme.W8A8_TENSOR;
        return experts.isSupportedConfig(
                layer.batchInvariant().config(),
                quantization.weightKey(),
                tensor ? QuantKey.INT8_STATIC_TENSOR_SYM : quantization.activationKey(),
                layer.config().activationFormat());
    }

    /**
     * The tokens of a call, of the largest, of others and alone, have the same output, experts and weights to the bit.
     * Among them are some of zeros, of large values and of NaN.
     *
     * @param alone how many of them are also sent one by one
     * @param sizes of calls, each of which is sent at two places of the tokens
     */
    public static void bitsDoNotDependOnTheBatch(
            FusedMoeExperts experts, Int8Quantization quantization, RandomLayer of, int alone, int... sizes) {
        int most = Arrays.stream(sizes).max().orElseThrow();
        RandomLayer layer = of.batchInvariant().forUpTo(most);
        FusedMoeConfig config = layer.config();
        assertThat(support(experts, layer, quantization)).isEqualTo(Support.YES);
        float[] hidden = hidden(layer, most);
        try (Int8Experts dynamic = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                Int8Experts int8 = quantization.scheme() == Int8Scheme.W8A8_TENSOR ? withScales(dynamic) : dynamic;
                MoeKernel kernel = experts.load(config, int8)) {
            for (int slot = 0; slot < config.maxLoras() && config.isLoraEnabled(); slot++) {
                Adapters.of(kernel).setAdapter(slot, layer.adapter(config.maxLoraRank() - slot, slot == 1));
            }
            Tokens all = Tokens.of(kernel, config, hidden, 0, most);
            for (int size : sizes) {
                for (int first : new int[] {0, most - size}) {
                    all.requireEqual(Tokens.of(kernel, config, hidden, first, size), first, size);
                }
            }
            for (int n = 0; n < alone; n++) {
                int token = (int) ((long) n * most / alone);
                all.requireEqual(Tokens.of(kernel, config, hidden, token, 1), token, 1);
            }
        }
    }

    /** The output, in memory that held something else before. */
    static float[] forward(MoeKernel kernel, float[] hidden, ChosenExperts chosen) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment output = arena.allocate(4L * hidden.length, 16).fill((byte) 0x3c);
            kernel.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), chosen.tokens(), output, chosen, null);
            return output.toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    private static float[] hidden(RandomLayer layer, int tokens) {
        int h = layer.config().hiddenDim();
        float[] hidden = layer.hidden(tokens, 1);
        for (int m = 0; m < tokens; m++) {
            float factor = m % 19 == 7 ? Float.NaN : m % 19 == 11 ? 1e6f : m % 23 == 3 ? 0 : 1;
            for (int c = m * h; c < (m + 1) * h && factor != 1; c++) {
                hidden[c] *= factor;
            }
        }
        return hidden;
    }

    private static Int8Experts withScales(Int8Experts dynamic) {
        return dynamic.with(dynamic.config(), dynamic.w13(), dynamic.w2(), Arena.ofShared())
                .activationScales(0.02f, 0.01f)
                .build();
    }

    /** What a call gave. */
    private record Tokens(float[] output, ChosenExperts chosen) {
        static Tokens of(MoeKernel kernel, FusedMoeConfig config, float[] hidden, int first, int count) {
            int h = config.hiddenDim();
            ScalarType type = config.inDtype();
            ChosenExperts chosen = chosen(config, first, count);
            try (Arena arena = Arena.ofConfined()) {
                float[] values = Arrays.copyOfRange(hidden, first * h, (first + count) * h);
                MemorySegment in = arena.allocate((long) type.bytes() * values.length, 16);
                MemorySegment out = arena.allocate((long) type.bytes() * values.length, 16);
                HiddenStates.write(type, values, values.length, in);
                out.fill((byte) 0x3c);
                int[] slots = slots(config, first, count);
                boolean both = count <= 64 && !config.router().isHandedIn();
                float[] unasked = new float[values.length];
                if (both) { // first, so that the call before had another number of tokens
                    kernel.forward(in, count, out, null, slots);
                    HiddenStates.read(type, out, unasked, unasked.length);
                    out.fill((byte) 0x3c);
                }
                kernel.forward(in, count, out, chosen, slots);
                HiddenStates.read(type, out, values, values.length);
                if (both) {
                    assertThat(unasked)
                            .as("a call of %d tokens that doesn't ask for their experts", count)
                            .isEqualTo(values);
                }
                return new Tokens(values, chosen);
            }
        }

        /** Where the choice is handed in, one that a token always has; else room for the kernel's. */
        private static ChosenExperts chosen(FusedMoeConfig config, int first, int count) {
            int k = config.pairsPerToken();
            ChosenExperts chosen = ChosenExperts.allocate(count, k);
            for (int p = 0; p < count * k && config.router().isHandedIn(); p++) {
                int token = first + p / k;
                chosen.ids()[p] = (token * 7 + p % k) % config.globalNumExperts();
                chosen.weights()[p] = 0.25f + (token + p % k) % 5 / 3f;
            }
            return chosen;
        }

        private static int @Nullable [] slots(FusedMoeConfig config, int first, int count) {
            return config.isLoraEnabled()
                    ? IntStream.range(first, first + count)
                            .map(token -> token % (config.maxLoras() + 1) - 1)
                            .toArray()
                    : null;
        }

        /** @param part a call's, of {@code count} tokens of this one's, from {@code first} on */
        void requireEqual(Tokens part, int first, int count) {
            int h = output.length / chosen.tokens();
            int k = chosen.topK();
            for (int m = 0; m < count; m++) {
                int token = first + m;
                assertThat(Arrays.copyOfRange(part.output, m * h, (m + 1) * h))
                        .as("output of token %d in a call of %d from %d on", token, count, first)
                        .isEqualTo(Arrays.copyOfRange(output, token * h, (token + 1) * h));
                assertThat(Arrays.copyOfRange(part.chosen.ids(), m * k, (m + 1) * k))
                        .as("experts of token %d in a call of %d from %d on", token, count, first)
                        .isEqualTo(Arrays.copyOfRange(chosen.ids(), token * k, (token + 1) * k));
                assertThat(Arrays.copyOfRange(part.chosen.weights(), m * k, (m + 1) * k))
                        .as("weights of token %d in a call of %d from %d on", token, count, first)
                        .isEqualTo(Arrays.copyOfRange(chosen.weights(), token * k, (token + 1) * k));
            }
        }
    }
}
