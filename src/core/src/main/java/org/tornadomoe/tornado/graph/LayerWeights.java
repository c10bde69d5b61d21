package org.tornadomoe.tornado.graph;

import static org.tornadomoe.tornado.graph.ArrayTable.Owner.LAYER;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.RouterWeights;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A layer's weights on the device: its router and both projections. Shape letters as in {@link Workspace}. */
final class LayerWeights {
    /** [L, H]: one row per choice, then the shared expert gate. */
    final FloatArray router;

    /** [L], zeros if the router has none. */
    final FloatArray routerBias;

    /** [choices] if the router has one. */
    final FloatArray correctionBias;

    /** [E]: an expert's local number, −1 if it is on another device. */
    final IntArray expertMap;

    /** [2I, H] per expert. */
    final Projection w13;

    /** [H, I] per expert. */
    final Projection w2;

    LayerWeights(LayerShape shape, ArrayTable table) {
        FusedMoeConfig config = shape.config;
        long logits = config.numRouterLogits();
        // If the caller passes ids and weights, there is no router here.
        router = table.floats("router", LAYER, shape.routes ? logits * shape.hidden : 1);
        routerBias = table.floats("routerBias", LAYER, shape.routes ? logits : 1);
        correctionBias =
                table.floats("correctionBias", LAYER, config.router().hasCorrectionBias() ? config.numChoices() : 1);
        expertMap = table.ints("expertMap", LAYER, shape.experts);
        w13 = Projection.declare(shape, table, true);
        w2 = Projection.declare(shape, table, false);
    }

    /** @param second whether there is a second projection to fill */
    void fill(LayerShape shape, Int8Experts experts, boolean second) {
        for (int expert = 0; expert < shape.experts; expert++) {
            expertMap.set(expert, experts.expertMap(expert));
        }
        w13.fill(shape, experts.w13(), experts.w13Bias(), true);
        if (second) {
            w2.fill(shape, experts.w2(), experts.w2Bias(), false);
        }
        routerBias.init(0);
        if (shape.routes) {
            fill(experts.router());
        }
    }

    /** Only what the configuration uses: a router may have more. */
    private void fill(RouterWeights weights) {
        copy(weights.weight(), router);
        if (weights.bias() != null) {
            copy(weights.bias(), routerBias);
        }
        if (weights.correctionBias() != null) {
            copy(weights.correctionBias(), correctionBias);
        }
        float[] gate = weights.sharedExpertGate();
        if (gate != null && weights.hasWeight()) {
            MemorySegment.copy(
                    gate, 0, router.getSegment(), ValueLayout.JAVA_FLOAT, 4L * weights.weight().length, gate.length);
        }
    }

    private static void copy(float[] from, FloatArray into) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 0, from.length);
    }
}
