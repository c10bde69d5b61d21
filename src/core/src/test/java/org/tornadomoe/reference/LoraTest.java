package org.tornadomoe.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RouterWeights;

/** An adapter is what its product added to the weights would be. */
class LoraTest {
    /** Weights with B A added, in float. */
    private record Merged(ExpertWeights weights, LoraAdapter adapter) implements ExpertWeights {
        @Override
        public FusedMoeConfig config() {
            return weights.config();
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            weights.gateUpRow(expert, row, into);
            int r = adapter.rank();
            int h = config().hiddenDim();
            int slices = LoraAdapter.slices(config());
            int a = adapter.w13A().length == slices * r * h ? 0 : expert * slices * r * h;
            int b = (expert * config().gateUpRows() + row) * r;
            int half = config().intermediateSize();
            int slice = config().activation() == MoeActivation.SWIGLUOAI ? row % 2 : row < half ? 0 : 1;
            for (int c = 0; c < h; c++) {
                for (int j = 0; j < r; j++) {
                    into[c] += adapter.w13B()[b + j] * adapter.w13A()[a + (slice * r + j) * h + c];
                }
            }
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            weights.downRow(expert, row, into);
            int r = adapter.rank();
            int i = config().intermediateSize();
            int h = config().hiddenDim();
            int b = (adapter.w2B().length == h * r ? row : expert * h + row) * r;
            for (int c = 0; c < i; c++) {
                for (int j = 0; j < r; j++) {
                    into[c] += adapter.w2B()[b + j] * adapter.w2A()[(expert * r + j) * i + c];
                }
            }
        }

        @Override
        public RouterWeights router() {
            return weights.router();
        }
    }

    @ParameterizedTest
    @CsvSource({"silu, false", "swigluoai, false", "relu2_no_mul, false", "silu, true"})
    void anAdapterIsItsProductAddedToTheWeights(String activation, boolean onInput) {
        RandomLayer layer = RandomLayer.of(4, onInput ? 1 : 2, 10, 6, 8, 1)
                .routedBy(RoutingMethodType.DEFAULT)
                .activatedBy(MoeActivation.fromString(activation));
        RandomLayer tested = onInput ? layer.weighedOnInput() : layer;
        float[] hidden = tested.hidden(7, 1);
        for (boolean shared : new boolean[] {true, false}) {
            LoraAdapter adapter = tested.adapter(3, shared);
            Stages plain = Reference.forward(tested, hidden, 7);
            List<@Nullable LoraAdapter> adapters = new ArrayList<>();
            for (int m = 0; m < 7; m++) {
                adapters.add(m == 3 ? null : adapter);
            }
            double[] output = Reference.forward(tested, hidden, plain.logits(), plain.routing(), adapters)
                    .output();
            double[] merged = Reference.forward(new Merged(tested, adapter), hidden, plain.logits(), plain.routing())
                    .output();
            System.arraycopy(plain.output(), 30, merged, 30, 10);
            assertThat(Numerics.relativeL2(output, merged)).isLessThan(1e-6);
            assertThat(Numerics.relativeL2(plain.output(), merged)).isGreaterThan(0.1);
        }
    }

    @Test
    void alphaIsMergedIntoB() {
        LoraAdapter adapter = LoraAdapter.of(
                2, 8, new float[] {1, 1}, new float[] {1, 2}, new float[] {3, 3}, new float[] {-1, 0.5f});
        assertThat(adapter.w13B()).containsExactly(4, 8);
        assertThat(adapter.w2B()).containsExactly(-4, 2);
        assertThat(adapter.w13A()).containsExactly(1, 1);
        assertThat(adapter.w2A()).containsExactly(3, 3);
        float[] none = new float[0];
        assertThat(LoraAdapter.of(1, 3, none, new float[] {2}, none, none).w13B())
                .containsExactly(6);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> LoraAdapter.of(0, 1, none, none, none, none))
                .withMessage("rank: expected a positive number, got 0");
    }

    @Test
    void whatDoesNotFitTheLayerIsNamed() {
        RandomLayer layer = RandomLayer.of(4, 2, 10, 6, 8, 1);
        LoraAdapter adapter = layer.adapter(3, true);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> adapter.requireFits(layer.config()))
                .withMessage("adapter: expected none, the layer was loaded without room for adapters");
        FusedMoeConfig config = layer.config().toBuilder().lora(2, 3).build();
        adapter.requireFits(config);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> layer.adapter(4, true).requireFits(config))
                .withMessage("rank: expected 1 to 3 (the most that the layer was loaded for), got 4");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new LoraAdapter(3, adapter.w13A(), new float[5], adapter.w2A(), adapter.w2B())
                        .requireFits(config))
                .withMessage("w13B: expected 36 values for each of 4 experts, or for all of them together, got 5");
        LoraAdapter of0 = new LoraAdapter(0, adapter.w13A(), adapter.w13B(), adapter.w2A(), adapter.w2B());
        assertThatIllegalArgumentException()
                .isThrownBy(() -> of0.requireFits(config))
                .withMessage("rank: expected 1 to 3 (the most that the layer was loaded for), got 0");
        layer.adapter(1, true).requireFits(config);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new LoraAdapter(3, new float[5], adapter.w13B(), adapter.w2A(), adapter.w2B())
                        .requireFits(config))
                .withMessage("w13A: expected 60 values for each of 4 experts, or for all of them together, got 5");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new LoraAdapter(3, adapter.w13A(), adapter.w13B(), adapter.w2A(), new float[5])
                        .requireFits(config))
                .withMessage("w2B: expected 30 values for each of 4 experts, or for all of them together, got 5");
        float[] nan = adapter.w2A().clone();
        nan[7] = Float.NaN;
        assertThatIllegalArgumentException()
                .isThrownBy(() ->
                        new LoraAdapter(3, adapter.w13A(), adapter.w13B(), nan, adapter.w2B()).requireFits(config))
                .withMessage("w2A: expected finite values, got NaN at index 7");
    }
}
