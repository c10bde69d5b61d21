package example;

import java.lang.foreign.MemorySegment;
import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Layers for a single token. The projections have their own kernels, and their own copy of the weights. */
final class TokenGraph extends DeviceGraph {
    private final int inputInts = sizes.qkv() * (sizes.hidden() / 4);
    private final int outputInts = sizes.hidden() * (sizes.heads() * sizes.headDim() / 4);

    /** The weights of all layers' projections, one array to save nodes. */
    private final IntArray weights;

    private final FloatArray weightScales;
    private int weightsFrom;
    private int weightScalesFrom;

    /** @param layers maximum number of layers */
    TokenGraph(
            String name,
            Model.Sizes sizes,
            DeviceArrays on,
            int context,
            FusedMoeConfig config,
            GridScheduler scheduler,
            List<String> before,
            DeviceGraph shared,
            int layers) {
        super(name, sizes, on, 1, context, config, scheduler, before, shared);
        weights = new IntArray(Math.multiplyExact(layers, inputInts + outputInts));
        weightScales = new FloatArray(layers * (sizes.qkv() + sizes.hidden()));
        own(on.attendedParts, weights, weightScales);
    }

    @Override
    void attend(int layer, Int8Tensor inputWeights, Int8Tensor outputWeights) {
        String n = "_" + layer;
        int width = sizes.heads() * sizes.headDim();
        project("qkv" + n, on.hidden, on.gains.attention[layer], inputWeights, on.qkv);
        normHeads(layer);
        graph.task(
                        "attend" + n,
                        AttentionKernels::attendPart,
                        kernel,
                        on.step,
                        on.qkv,
                        on.gains.values,
                        on.gains.heads[layer],
                        on.rotations,
                        on.keys.get(layer),
                        on.values.get(layer),
                        on.attendedParts,
                        sizes.heads(),
                        sizes.kvHeads(),
                        sizes.headDim(),
                        context,
                        normsEachHead(),
                        sizes.epsilon())
                .task(
                        "attendAll" + n,
                        AttentionKernels::attendAll,
                        kernel,
                        on.attendedParts,
                        on.attended,
                        sizes.heads(),
                        sizes.headDim());
        grid("attend" + n, tokens -> sizes.heads() * AttentionKernels.PARTS);
        grid("attendAll" + n, tokens -> Math.ceilDiv(width, WorkGroup.ITEMS));
        project("out" + n, on.attended, 0, outputWeights, on.projected);
    }

    /** Copies a projection's weights to the next free place, and appends its task. */
    private void project(String task, FloatArray x, int gainsFrom, Int8Tensor of, FloatArray y) {
        DeviceArrays.pack(of, weights, weightsFrom);
        DeviceArrays.copy(MemorySegment.ofArray(of.scales()), weightScales.getSegment(), weightScalesFrom);
        int ints = of.cols() / 4;
        project(task, x, gainsFrom, weights, weightsFrom, weightScales, weightScalesFrom, y, of.rows(), ints);
        weightsFrom += of.rows() * ints;
        weightScalesFrom += of.rows();
    }
}
