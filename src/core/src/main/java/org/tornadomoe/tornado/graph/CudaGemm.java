package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntFunction;
import java.util.stream.Stream;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;

/** GEMMs in CUDA C that end with the activation; {@code gemm.cu} has what their sources have in common. */
abstract class CudaGemm implements ExpertGemm {
    /** The resource with its kernels. */
    abstract String source();

    /** What its source is compiled with, beside what {@code gemm.cu} asks for. */
    abstract List<String> options(LayerArrays a, int cols);

    /**
     * One of the products, with an activation in its last step or without.
     *
     * @param packsUpTo rows up to which it brings its factor into the form that it multiplies itself
     */
    abstract Stage stage(LayerArrays a, Rows rows, Product p, ActivationCode activation, int packsUpTo);

    /** Without the activation. */
    @Override
    public List<Stage> stages(LayerArrays a, Rows rows, Product p) {
        int gate = p.isFirst() ? a.shape.activation.layout() : ActivationKernels.NO_GATE;
        return List.of(stage(a, rows, p, ActivationCode.none(gate), 0));
    }

    @Override
    public boolean activates() {
        return true;
    }

    @Override
    public boolean keepsNaN() {
        return true;
    }

    /**
     * A kernel of its source.
     *
     * @param cols of the factor that it reads or makes
     */
    final Stage kernel(
            LayerArrays a,
            String name,
            ActivationCode activation,
            int cols,
            IntFunction<Launch> launch,
            List<Object> reads,
            List<Object> writes,
            List<Object> updates,
            List<Object> scalars) {
        List<String> options = Stream.concat(
                        options(a, cols).stream(),
                        Stream.of(
                                CudaProgram.pad("LEAD", a.alignmentPad),
                                CudaProgram.pad("WEIGHTS_LEAD", layout().weightPad()),
                                "-DACTIVATION=" + activation.function(),
                                "-DLAYOUT=" + activation.layout(),
                                "-DPARTS=" + a.shape.parts.count()))
                .toList();
        return Stage.cuda(new CudaKernel(name, source(), options, launch, reads, writes, updates, scalars));
    }
}
