package org.tornadomoe.tornado.graph;

import static org.tornadomoe.tornado.graph.ArrayTable.Owner.LAYER;
import static org.tornadomoe.tornado.graph.ArrayTable.Owner.WORKSPACE;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.LoraAdapter;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Adapters on the device: L slots, S slices and R ranks as {@link LoraAdapter} has them, E local experts. */
public final class AdapterArrays {
    /** [M]: the slot of each token's adapter, −1 for none. */
    public final IntArray slots;

    /** [L, E, S·R, H]. */
    final FloatArray w13A;

    /** [L, E, R, 2I]. */
    final FloatArray w13B;

    /** [L, E, R, I]. */
    final FloatArray w2A;

    /** [L, E, R, H]. */
    final FloatArray w2B;

    /** What is between A and B, [P, S·R]. */
    final FloatArray shrunk;

    private final LayerShape shape;

    AdapterArrays(LayerShape shape, ArrayTable table) {
        this.shape = shape;
        boolean adapted = shape.adapted;
        long slices = LoraAdapter.slices(shape.config);
        long rank = shape.config.maxLoraRank();
        long ranks = rank * shape.localExperts * shape.config.maxLoras();
        slots = table.ints("adapters", WORKSPACE, adapted ? shape.maxTokens : 1);
        w13A = table.floats("w13LoraA", LAYER, adapted ? ranks * slices * shape.hidden : 1);
        w13B = table.floats("w13LoraB", LAYER, adapted ? ranks * shape.gateUpRows : 1);
        w2A = table.floats("w2LoraA", LAYER, adapted ? ranks * shape.intermediate : 1);
        w2B = table.floats("w2LoraB", LAYER, adapted ? ranks * shape.hidden : 1);
        shrunk = table.floats("shrunk", WORKSPACE, adapted ? shape.pairs(shape.maxTokens) * slices * rank : 1);
    }

    /** No adapters. */
    void clear() {
        slots.init(-1);
        for (FloatArray lora : List.of(w13A, w13B, w2A, w2B)) {
            lora.init(0);
        }
    }

    /** An adapter into its slot, its B transposed; or zeros. */
    void set(int slot, @Nullable LoraAdapter adapter, IntArray expertMap) {
        int rank = adapter == null ? 0 : adapter.rank();
        float[] none = new float[0];
        int slices = LoraAdapter.slices(shape.config);
        for (int expert = 0; expert < shape.experts; expert++) {
            if (expertMap.get(expert) >= 0) {
                int at = slot * shape.localExperts + expertMap.get(expert);
                copyA(adapter == null ? none : adapter.w13A(), rank, expert, slices, shape.hidden, w13A, at);
                copyB(adapter == null ? none : adapter.w13B(), rank, expert, shape.gateUpRows, w13B, at);
                copyA(adapter == null ? none : adapter.w2A(), rank, expert, 1, shape.intermediate, w2A, at);
                copyB(adapter == null ? none : adapter.w2B(), rank, expert, shape.hidden, w2B, at);
            }
        }
    }

    /** An expert's [slices, rank, cols] into [slices, R, cols]. */
    private void copyA(float[] from, int rank, int expert, int slices, int cols, FloatArray into, int at) {
        int most = shape.config.maxLoraRank();
        int first = LoraAdapter.offset(from, expert, slices * rank * cols);
        for (int row = 0; row < slices * most; row++) {
            int j = row % most;
            for (int c = 0; c < cols; c++) {
                float value = j < rank ? from[first + (row / most * rank + j) * cols + c] : 0;
                into.set((at * slices * most + row) * cols + c, value);
            }
        }
    }

    /** An expert's [rows, rank] into [R, rows]. */
    private void copyB(float[] from, int rank, int expert, int rows, FloatArray into, int at) {
        int most = shape.config.maxLoraRank();
        int first = LoraAdapter.offset(from, expert, rows * rank);
        for (int j = 0; j < most; j++) {
            for (int row = 0; row < rows; row++) {
                into.set((at * most + j) * rows + row, j < rank ? from[first + row * rank + j] : 0);
            }
        }
    }
}
