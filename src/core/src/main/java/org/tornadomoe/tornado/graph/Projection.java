package org.tornadomoe.tornado.graph;

import static org.tornadomoe.tornado.graph.ArrayTable.Owner.LAYER;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ExpertParts;
import org.tornadomoe.tornado.layout.WeightLayout;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * A projection's weights on the device, one array per part. Scales, zero points and biases are in as many arrays, or in
 * one if the GEMM numbers experts across all parts.
 *
 * @param values {@code [experts of the part, rows, cols]} in the order of the GEMM's layout
 * @param scales {@code [experts, rows]}; with blocks and groups {@code [experts, groups of columns, scale rows]}
 * @param zeroPoints with zero points as scales
 * @param bias with biases {@code [experts, rows]}
 * @param sizes the sizes that a prebuilt kernel reads
 * @param packing how that kernel packs the factor, if float activations are packed
 */
record Projection(
        List<IntArray> values,
        List<FloatArray> scales,
        List<FloatArray> zeroPoints,
        List<FloatArray> bias,
        IntArray sizes,
        IntArray packing) {

    static Projection declare(LayerShape shape, ArrayTable table, boolean first) {
        String name = first ? "w13" : "w2";
        int rows = first ? shape.gateUpRows : shape.hidden;
        int cols = first ? shape.hidden : shape.intermediate;
        int gate = gate(shape, first);
        WeightLayout layout = shape.gemm.layout();
        int packedRows = layout.packedRows(rows, gate);
        ExpertParts scaled = scaled(shape);
        Int8Quantization quantization = shape.quantization;
        return new Projection(
                table.ints(
                        name,
                        LAYER,
                        shape.parts,
                        experts -> layout.weightPad() + layout.ints(experts, rows, cols, gate)),
                table.floats(
                        name + "Scales",
                        LAYER,
                        scaled,
                        experts -> layout.scales(quantization, experts, packedRows, cols)),
                table.floats(
                        name + "ZeroPoints",
                        LAYER,
                        scaled,
                        experts ->
                                quantization.zeroPoints() ? layout.scales(quantization, experts, packedRows, cols) : 1),
                table.floats(name + "Bias", LAYER, scaled, experts -> shape.biased ? (long) experts * packedRows : 1),
                table.ints(name + "Sizes", LAYER, shape.gemm.prebuiltSizes()),
                table.ints(name + "Packing", LAYER, shape.gemm.packsFloats() ? shape.gemm.prebuiltSizes() : 1));
    }

    /** The position of gates in its rows, as {@link ActivationKernels} defines it. */
    private static int gate(LayerShape shape, boolean first) {
        return first ? shape.activation.layout() : ActivationKernels.NO_GATE;
    }

    /** The arrays that hold each expert's scales. */
    private static ExpertParts scaled(LayerShape shape) {
        return shape.gemm.layout().numbersAllExperts() ? shape.parts.together() : shape.parts;
    }

    /** Takes weights in the layout's order, part by part. */
    void fill(LayerShape shape, Int8Tensor from, float @Nullable [] biases, boolean first) {
        WeightLayout layout = shape.gemm.layout();
        int gate = gate(shape, first);
        for (int p = 0; p < values.size(); p++) {
            layout.pack(from.experts(shape.parts.first(p), shape.parts.experts(p)), gate, values.get(p));
        }
        ExpertParts scaled = scaled(shape);
        for (int p = 0; p < scales.size(); p++) {
            Int8Tensor part = from.experts(scaled.first(p), scaled.experts(p));
            layout.packScales(part, gate, scales.get(p), zeroPoints.get(p));
            bias.get(p).init(0);
            if (biases != null) {
                layout.packBias(biases, scaled.first(p), scaled.experts(p), from.rows(), gate, bias.get(p));
            }
        }
    }
}
