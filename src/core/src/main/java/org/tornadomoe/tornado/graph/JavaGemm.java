package org.tornadomoe.tornado.graph;

/** One whose layer is the program of kernels in Java. */
abstract class JavaGemm implements ExpertGemm {
    @Override
    public LayerProgram program(LayerArrays arrays) {
        return new LayerProgram(this, arrays);
    }
}
