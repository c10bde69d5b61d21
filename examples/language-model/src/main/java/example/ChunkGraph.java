package example;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.GridScheduler;

/** Layers for chunks of a prompt. The projections are the library's kernels for many tokens. */
final class ChunkGraph extends DeviceGraph {
    ChunkGraph(
            String name,
            Model.Sizes sizes,
            DeviceArrays on,
            int maxTokens,
            int context,
            FusedMoeConfig config,
            GridScheduler scheduler,
            List<String> before) {
        super(name, sizes, on, maxTokens, context, config, scheduler, before, null);
    }

    @Override
    void attend(int layer, Int8Tensor inputWeights, Int8Tensor outputWeights) {
        String n = "_" + layer;
        norm("attentionNorm" + n, 0, on.gains.attention[layer]);
        moe.appendProduct("qkv" + n, inputWeights, DeviceArrays.DENSE, on.normed, on.qkv);
        normHeads(layer);
        int share = Math.min(AttentionKernels.QUERIES, Integer.lowestOneBit(sizes.heads() / sizes.kvHeads()));
        graph.task(
                        "rotate" + n,
                        AttentionKernels::rotateHeads,
                        kernel,
                        moe.header(),
                        on.step,
                        on.qkv,
                        on.gains.values,
                        on.gains.heads[layer],
                        on.rotations,
                        on.keys.get(layer),
                        on.values.get(layer),
                        sizes.heads(),
                        sizes.kvHeads(),
                        sizes.headDim(),
                        context,
                        normsEachHead(),
                        sizes.epsilon())
                .task(
                        "attend" + n,
                        AttentionKernels::attend,
                        kernel,
                        moe.header(),
                        on.step,
                        on.qkv,
                        on.keys.get(layer),
                        on.values.get(layer),
                        on.attended,
                        sizes.heads(),
                        sizes.kvHeads(),
                        sizes.headDim(),
                        context,
                        share);
        int heads = sizes.heads() + sizes.kvHeads();
        grid("rotate" + n, tokens -> Math.ceilDiv(tokens * heads * sizes.headDim(), WorkGroup.ITEMS));
        grid("attend" + n, tokens -> Math.ceilDiv(tokens * share, AttentionKernels.QUERIES) * (sizes.heads() / share));
        moe.appendProduct("out" + n, outputWeights, DeviceArrays.DENSE, on.attended, on.projected);
    }
}
