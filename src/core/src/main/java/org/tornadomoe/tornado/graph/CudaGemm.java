package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.IntFunction;
import java.util.stream.Stream;
import org.tornadomoe.tornado.cuda.CudaKernel;
import org.tornadomoe.tornado.cuda.CudaKernel.Launch;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import org.tornadomoe.tornado.layout.ActivationCode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** GEMMs in CUDA C that end with the activation; {@code gemm.cu} has what their sources have in common. */
abstract class CudaGemm implements ExpertGemm {
    /** The resource with its kernels. */
    abstract String source();

    /** Whether it is for Hopper alone, so that what is around it may have kernels for Hopper, too. */
    boolean isForHopper() {
        return false;
    }

    /** What its source is compiled with, beside what {@code gemm.cu} asks for. */
    abstract List<String> options(LayerArrays a, int cols);

    /**
     * What a product is launched with for M tokens.
     *
     * @param groups of 8 packed rows of the projection
     */
    abstract Launch launch(LayerArrays a, Product p, int groups, int tokens);

    /**
     * A group of {@code skinnyGemm} for 32 packed rows and a block; each of its warps has two chunks of these rows on
     * their way.
     *
     * @param chunk k of a chunk
     */
    static Launch streaming(LayerArrays a, int groups, int warps, int chunk, int tokens) {
        return new Launch("skinnyGemm", 32 * warps, groups / 4, a.blocks(tokens), warps * 2 * 32 * chunk);
    }

    /** How k is divided: its chunks, and what else the source has parameters for. */
    abstract List<Integer> chunking(LayerArrays a, Product p);

    /** The projection's scales, and what else the source has parameters for of the kind. */
    abstract List<FloatArray> scales(Projection projection);

    /**
     * Whether the kernel in front of a product has nothing to do with the order of pairs, so that the product need not
     * wait for it to read that.
     */
    abstract boolean isLater(Product p);

    /**
     * One of the products, with an activation in its last step or without.
     *
     * @param packsUpTo rows up to which it brings its factor into the form that it multiplies itself
     */
    final Stage stage(LayerArrays a, Product p, ActivationCode activation, int packsUpTo) {
        int groups = layout().packedRows(p.rows(), activation.layout()) / 8;
        List<Object> reads = Stream.of(
                        List.of(
                                a.work.header,
                                a.work.sortedIds,
                                a.work.expertIds,
                                a.work.numPostPadded,
                                p.quantized(),
                                p.scales()),
                        p.projection().values(),
                        scales(p.projection()),
                        List.of(
                                p.projection().bias().getFirst(),
                                a.work.topkWeights,
                                packsUpTo > 0 ? p.floats() : a.work.topkWeights))
                .<Object>flatMap(List::stream)
                .toList();
        int columns = activation.function() < 0 ? p.rows() : a.shape.intermediate;
        List<Object> scalars = Stream.of(
                        List.of(a.shape.topK, p.pairsPerRow(), columns, groups),
                        chunking(a, p),
                        List.of(
                                a.shape.parts.expertsOfPart(),
                                p.weighted(),
                                a.shape.biased ? 1 : 0,
                                isLater(p) ? 1 : 0,
                                p.cols(),
                                packsUpTo,
                                activation.limit(),
                                activation.alpha(),
                                activation.beta(),
                                activation.linearBeta()))
                .<Object>flatMap(List::stream)
                .toList();
        return kernel(
                a,
                p.name(),
                activation,
                p.cols(),
                m -> launch(a, p, groups, m),
                reads,
                List.of(p.out()),
                List.of(a.work.amax),
                scalars);
    }

    /** Without the activation. */
    @Override
    public List<Stage> stages(LayerArrays a, Product p) {
        int gate = p.isFirst() ? a.shape.activation.layout() : ActivationKernels.NO_GATE;
        return List.of(stage(a, p, ActivationCode.none(gate), 0));
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
