package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.TornadoHome;
import uk.ac.manchester.tornado.api.types.HalfFloat;
import uk.ac.manchester.tornado.api.types.arrays.HalfFloatArray;

class HalfKernelTest {
    @ParameterizedTest
    @EnumSource(names = {"F16", "BF16"})
    void kernelsConvertAsTheHost(ScalarType type) {
        HalfChecks.kernelsConvertAsTheHost(TornadoHome.current().devices().getFirst(), type, true);
    }

    @ParameterizedTest
    @CsvSource({"triton, F16", "triton, BF16", "cpu, F16", "cpu, BF16", "reference, F16", "reference, BF16"})
    void aLayerInHalvesGivesTheRoundedOutputOfOneInFloats(String backend, ScalarType type) {
        HalfChecks.layersAgree(backend, null, type);
    }

    /** TornadoVM runs a graph's first task instead of every prebuilt one, so that has to be one. */
    @ParameterizedTest
    @EnumSource(names = {"F32", "F16", "BF16"})
    void aPrebuiltTaskIsTheFirst(ScalarType type) {
        FusedMoeConfig config = RandomLayer.of(4, 2, 24, 12, 16, 3).config().toBuilder()
                .inDtype(type)
                .build();
        try (Int8Experts experts =
                        Int8Quantizer.quantize(new RandomLayer(config, 1), Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                LayerArrays arrays = new LayerArrays(
                        config, experts, Long.MAX_VALUE, HostMemory.of(false), new TensorCoreGemm(), false)) {
            assertThat(Families.program(arrays).call().stream().map(Stage::name))
                    .startsWith("first")
                    .doesNotHaveDuplicates();
        }
    }

    @Test
    void tornadoVmsOwnArraysAreTaken() {
        RandomLayer weights = RandomLayer.of(4, 2, 24, 12, 16, 3);
        float[] hidden = weights.hidden(2, 1);
        HalfFloatArray in = new HalfFloatArray(hidden.length);
        HalfFloatArray out = new HalfFloatArray(hidden.length);
        for (int i = 0; i < hidden.length; i++) {
            in.set(i, new HalfFloat(hidden[i]));
        }
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(2).withHiddenType(ScalarType.F16);
        try (MoeLayer layer = MoeLayer.of(weights, options.withBackend("triton"))) {
            layer.forward(in.getSegment(), 2, out.getSegment(), null);
            float[] expected = layer.forward(hidden);
            for (int i = 0; i < expected.length; i++) {
                assertThat(out.get(i).getFloat32()).isEqualTo(expected[i]);
            }
        }
    }

    @Test
    void memoryIsMeasuredInTheTypesValues() {
        RandomLayer weights = RandomLayer.of(4, 2, 24, 12, 16, 3);
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(2).withHiddenType(ScalarType.BF16);
        try (MoeLayer layer = MoeLayer.of(weights, options)) {
            MemorySegment enough = MemorySegment.ofArray(new short[48]);
            layer.forward(enough, 2, enough, null);
            MemorySegment less = MemorySegment.ofArray(new short[47]);
            assertThatThrownBy(() -> layer.forward(less, 2, enough, null))
                    .hasMessage("hidden: expected at least 48 values in bf16 (tokens x hidden size 24), got 47");
        }
        assertThatThrownBy(() -> options.withHiddenType(ScalarType.I8))
                .hasMessage("hiddenType: expected f32, f16 or bf16, got i8");
    }
}
