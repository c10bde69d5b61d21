package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** Of a layer of 3 experts, 2 a token, hidden size 4. */
class RouterWeightsTest {
    private static final float[] WEIGHT = new float[12];

    private static FusedMoeConfig layer(ScoringFunction scoring) {
        return FusedMoeConfig.builder()
                .numExperts(3)
                .expertsPerToken(2)
                .hiddenDim(4)
                .intermediateSize(8)
                .router(RouterConfig.of(scoring, false))
                .build();
    }

    private static RouterNetwork network(int width, int hidden, int choices, float @Nullable [] factor) {
        float[] square = new float[width * width];
        float[] row = new float[width];
        return new RouterNetwork(
                new float[width * hidden],
                row,
                factor,
                row,
                1e-6,
                square,
                row,
                square,
                row,
                new float[choices * width],
                new float[choices]);
    }

    private static RouterWeights of(int @Nullable [] table, @Nullable RouterNetwork network) {
        return new RouterWeights(WEIGHT, null, null, null, table, network);
    }

    private static void refused(RouterWeights weights, ScoringFunction scoring, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> weights.requireFits(layer(scoring)))
                .withMessage(message);
    }

    @Test
    void tablesAndNetworksAreThereWhereTheLayerSaysSo() {
        int[] table = {0, 1, 2, 0};
        RouterNetwork network = network(2, 4, 4, null);
        of(null, null).requireFits(layer(ScoringFunction.SOFTMAX));
        of(table, null).requireFits(layer(ScoringFunction.TOKEN_TABLE));
        of(null, network).requireFits(layer(ScoringFunction.NETWORK));
        refused(
                of(null, null),
                ScoringFunction.TOKEN_TABLE,
                "router: expected a table of experts, as its configuration says, got none");
        refused(
                of(table, null),
                ScoringFunction.SOFTMAX,
                "router: expected no table of experts, as its configuration says, got one");
        refused(
                of(null, null),
                ScoringFunction.NETWORK,
                "router: expected a network, as its configuration says, got none");
        refused(
                of(null, network),
                ScoringFunction.SOFTMAX,
                "router: expected no network, as its configuration says, got one");
        // A function of the caller's takes the place of whatever there is.
        of(table, network).requireFits(layer(ScoringFunction.CUSTOM));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "0 1 2 | table of experts: expected 2 experts a token id, got 3 in all",
                "0 1 2 3 | table of experts: expected 0 to 2, got 3 for token id 1",
                "0 -1 2 1 | table of experts: expected 0 to 2, got -1 for token id 0"
            })
    void aTableHasTheLayersExperts(String ids, String message) {
        int[] table = Arrays.stream(ids.split(" ")).mapToInt(Integer::parseInt).toArray();
        refused(of(table, null), ScoringFunction.TOKEN_TABLE, message);
    }

    @Test
    void aTableHasARow() {
        refused(
                of(new int[0], null),
                ScoringFunction.TOKEN_TABLE,
                "table of experts: expected 2 experts a token id, got 0 in all");
    }

    @Test
    void aNetworkIsOfTheLayersSizes() {
        refused(
                of(null, network(2, 3, 4, null)),
                ScoringFunction.NETWORK,
                "router: expected a network of 4 inputs and 4 choices, got 3 and 4");
        refused(
                of(null, network(2, 4, 3, null)),
                ScoringFunction.NETWORK,
                "router: expected a network of 4 inputs and 4 choices, got 4 and 3");
    }

    /** There where the configuration says so; where it isn't read, it may be there or not. */
    @Test
    void theCorrectionBiasIsThereWhereTheLayerSaysSo() {
        RouterWeights without = of(null, null);
        RouterWeights with = new RouterWeights(WEIGHT, null, new float[3], null);
        for (ScoringFunction unread : List.of(ScoringFunction.CUSTOM, ScoringFunction.SPARSE_MIXER)) {
            without.requireFits(layer(unread));
            with.requireFits(layer(unread));
        }
        refused(
                with,
                ScoringFunction.SIGMOID,
                "router: expected no correction bias, as its configuration says, got one");
        FusedMoeConfig corrected = layer(ScoringFunction.SIGMOID).toBuilder()
                .router(RouterConfig.of(ScoringFunction.SIGMOID, false).withCorrectionBias())
                .build();
        with.requireFits(corrected);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> without.requireFits(corrected))
                .withMessage("router: expected a correction bias, as its configuration says, got none");
    }

    @Test
    void aGateOfSharedExpertsIsOfTheLayersSizes() {
        FusedMoeConfig shared = layer(ScoringFunction.SOFTMAX).toBuilder()
                .numFusedSharedExperts(1)
                .router(RouterConfig.of(ScoringFunction.SOFTMAX, false).withSharedExpertGate())
                .build();
        new RouterWeights(WEIGHT, null, null, new float[4]).requireFits(shared);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new RouterWeights(WEIGHT, null, null, new float[5]).requireFits(shared))
                .withMessage("shared expert gate: expected [1, 4] = 4 values, got 5");
    }

    @Test
    void allThatIsHeldIsCounted() {
        assertThat(RouterWeights.NONE.bytes()).isZero();
        assertThat(new RouterWeights(WEIGHT, new float[3], new float[2], new float[4]).bytes())
                .isEqualTo(4 * (12 + 3 + 2 + 4));
        assertThat(of(new int[6], null).bytes()).isEqualTo(4 * (12 + 6));
        // [2, 4], two of [2, 2], [3, 2]; four vectors of 2, and of 3 choices
        assertThat(network(2, 4, 3, null).bytes()).isEqualTo(4 * (8 + 8 + 6 + 8 + 3));
        assertThat(network(2, 4, 3, new float[2]).bytes()).isEqualTo(4 * (8 + 8 + 6 + 8 + 3 + 2));
        assertThat(of(null, network(2, 4, 3, null)).bytes()).isEqualTo(4 * (12 + 33));
    }
}
