package org.tornadomoe.tornado.graph;

import java.util.List;

/**
 * A family of kernels for the experts' matrix products, one class each: what {@link GemmFamily} says of it, and its
 * stages. Implementations have no state.
 */
public interface ExpertGemm extends GemmFamily {
    /** The stages of a whole layer. */
    LayerProgram program(LayerArrays arrays);

    /** The stages of one product. */
    List<Stage> stages(LayerArrays arrays, Product product);

    /** Stages before all others of a layer: none but where TornadoVM wants some. */
    default List<Stage> preparations(LayerArrays arrays) {
        return List.of();
    }
}
