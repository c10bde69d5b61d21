package org.tornadomoe.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.reference.Numerics;

/** What a layer's router reads beside hidden states comes with the call, or the call is refused. */
class RouterInputsTest {
    private static final Path FAMILIES = Path.of("src/test/resources/golden/families");
    private static final MoeOptions CPU = MoeOptions.DEFAULT.withBackend("cpu");
    private static final int TOKENS = 23;

    private static float[] tensor(String family, String name) {
        try (Safetensors golden = Safetensors.open(FAMILIES.resolve(family).resolve("golden.safetensors"))) {
            return golden.tensor(name).toFloats();
        }
    }

    @Test
    void aLayerThatChoosesByTokensIdsIsNotRunWithoutThem() {
        float[] hidden = tensor("deepseek_v4_hash", "hidden_states");
        float[] output = new float[hidden.length];
        try (MoeLayer layer = MoeLayer.load(FAMILIES.resolve("deepseek_v4_hash"), 0, CPU)) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> layer.forward(hidden))
                    .withMessageContaining(
                            "tokenIds: expected an id for each token, as this layer's router reads them");
            assertThatIllegalArgumentException()
                    .isThrownBy(() ->
                            layer.forward(hidden, TOKENS, output, null, RouterInputs.ofTokenIds(new int[TOKENS - 1])))
                    .withMessageContaining("got 22 for more tokens");
            for (int wrong : new int[] {-1, 64}) {
                int[] ids = new int[TOKENS];
                ids[7] = wrong;
                assertThatIllegalArgumentException()
                        .isThrownBy(() -> layer.forward(hidden, TOKENS, output, null, RouterInputs.ofTokenIds(ids)))
                        .withMessageContaining("tokenIds: expected 0 to 63, got " + wrong + " for token 7");
            }
            assertThat(output).containsOnly(0);
        }
    }

    /** The golden file's table has the same expert twice for token id 3. */
    @Test
    void anExpertThatIsTwiceInTheTableIsChosenOnceWithBothWeights() {
        float[] hidden = Arrays.copyOf(tensor("deepseek_v4_hash", "hidden_states"), 32);
        try (MoeLayer layer = MoeLayer.load(FAMILIES.resolve("deepseek_v4_hash"), 0, CPU)) {
            ChosenExperts chosen = ChosenExperts.allocate(1, layer.config().pairsPerToken());
            layer.forward(hidden, 1, new float[32], chosen, RouterInputs.ofTokenIds(3));
            assertThat(chosen.ids()).containsExactly(5, -1, 8);
            assertThat(chosen.weights()).containsExactly(1.5f, 0, 1);
        }
    }

    /** A model's first layer writes its states, whatever stood there. */
    @ParameterizedTest
    @ValueSource(floats = {0, 5})
    void statesAreWrittenForTheNextLayer(float before) {
        float[] hidden = tensor("zaya_first", "hidden_states");
        float[] states = new float[TOKENS * 12];
        Arrays.fill(states, before);
        float[] output = new float[hidden.length];
        try (MoeLayer first = MoeLayer.load(FAMILIES.resolve("zaya_first"), 0, CPU)) {
            first.forward(hidden, TOKENS, output, null, RouterInputs.ofStates(states));
            double[] expected = Numerics.widen(tensor("zaya_first", "router_states_after"));
            assertThat(Numerics.relativeL2(Numerics.widen(states), expected)).isLessThan(1e-6);
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> first.forward(hidden, TOKENS, output, null, RouterInputs.ofStates(new float[12])))
                    .withMessageContaining("states: expected [23, 12] values, got 12");
        }
    }
}
