package org.tornadomoe.tornado.graph;

import java.util.ArrayList;
import java.util.List;
import org.tornadomoe.tornado.kernels.CombineKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/**
 * The kernels of a layer, in the order of a forward pass: {@link #logits}, {@link #topK}, {@link #place},
 * {@link #align}, {@link #quantizeTokens}, {@link #gateUp}, {@link #activateAndQuantize}, {@link #down},
 * {@link #combine}, {@link #zeroExperts}. Each is a list, empty where the layer has no such step. Here they are in
 * Java.
 */
public class LayerProgram {
    final ExpertGemm gemm;
    final LayerArrays a;
    final RouterStages router;
    final AlignStages alignment;
    final LoraStages lora;

    LayerProgram(ExpertGemm gemm, LayerArrays arrays) {
        this.gemm = gemm;
        a = arrays;
        router = new RouterStages(arrays);
        alignment = new AlignStages(arrays);
        lora = new LoraStages(arrays);
    }

    /** The whole layer, from {@link Workspace#hidden} to {@link Workspace#output}. */
    public List<Stage> all() {
        return inOrder(
                logits(),
                topK(),
                place(),
                align(),
                alignment.parts(),
                quantizeTokens(),
                gateUp(),
                loraGateUp(),
                activateAndQuantize(),
                down(),
                loraDown(),
                combine(),
                zeroExperts());
    }

    /** The first product alone, from {@link Workspace#hidden} to {@link Workspace#gateUp}: experts are handed in. */
    public final List<Stage> firstProduct() {
        return inOrder(align(0), alignment.parts(), quantizeTokens(), gateUp());
    }

    /** What a call takes: the layer, and what it brings to the device and back by itself, or makes of 16 bits. */
    public List<Stage> call() {
        return inOrder(
                gemm.preparations(a),
                a.shape.halves ? List.of(widenHidden()) : List.of(),
                all(),
                a.shape.halves ? List.of(narrowOutput()) : List.of());
    }

    @SafeVarargs
    static List<Stage> inOrder(List<Stage>... steps) {
        List<Stage> all = new ArrayList<>();
        for (List<Stage> step : steps) {
            all.addAll(step);
        }
        return List.copyOf(all);
    }

    /** hiddenHalves → hidden. */
    Stage widenHidden() {
        return new HalfStages(a).widenHidden();
    }

    /** output → outputHalves. */
    Stage narrowOutput() {
        return new HalfStages(a).narrowOutput();
    }

    List<Stage> logits() {
        return router.logits();
    }

    List<Stage> topK() {
        return router.topK();
    }

    List<Stage> place() {
        return router.place();
    }

    List<Stage> align() {
        return alignment.align();
    }

    /** See {@link AlignStages#align(int)}. */
    List<Stage> align(int keep) {
        return alignment.align(keep);
    }

    final List<Stage> alignParts() {
        return alignment.parts();
    }

    /** hidden → hiddenQ and scales. */
    List<Stage> quantizeTokens() {
        return new QuantizeStages(a).hidden();
    }

    List<Stage> gateUp() {
        return product(gateUpProduct(a.work.gateUp));
    }

    /**
     * The first product. Router weights that are applied on the input are in the quantised tokens; float ones don't
     * have them, and as this is a sum of products it gets them itself.
     */
    Product gateUpProduct(FloatArray out) {
        LayerShape shape = a.shape;
        return new Product(
                "gateUp",
                true,
                a.work.hiddenQ,
                a.work.hiddenScales,
                a.work.hidden,
                a.weights.w13,
                out,
                shape.packed ? shape.config.pairsPerInputRow() : shape.topK,
                shape.gateUpRows,
                shape.hidden,
                shape.weightsOnInput && !shape.packed ? 2 : 0);
    }

    final List<Stage> loraGateUp() {
        return lora.gateUp();
    }

    /** gateUp → activated, and its int8 and scales. */
    List<Stage> activateAndQuantize() {
        return new ActivationStages(a).activateAndQuantize();
    }

    /** activated → activatedQ and scales, where that isn't done with the activation. */
    List<Stage> quantizePairs() {
        return new QuantizeStages(a).activated();
    }

    final List<Stage> down() {
        return product(downProduct());
    }

    /** The second product, with the router's weights unless they are applied on the input. */
    final Product downProduct() {
        return new Product(
                "down",
                false,
                a.work.activatedQ,
                a.work.activatedScales,
                a.work.activated,
                a.weights.w2,
                a.work.down,
                1,
                a.shape.hidden,
                a.shape.intermediate,
                weightsDown());
    }

    private int weightsDown() {
        return a.shape.weightsOnInput ? 0 : 1;
    }

    final List<Stage> product(Product product) {
        return gemm.stages(a, product);
    }

    /** Weighted as what it is added to. */
    final List<Stage> loraDown() {
        return lora.down(weightsDown());
    }

    /** down → output. */
    List<Stage> combine() {
        return List.of(KernelTask.stage(
                "combine",
                CombineKernels.GROUP,
                m -> KernelTask.elementGroups(m, a.shape.hidden, CombineKernels.GROUP),
                t -> t.runs(
                        CombineKernels::combine,
                        t.in(a.work.header),
                        t.in(a.work.keys),
                        t.in(a.work.down),
                        t.out(a.work.output),
                        a.shape.topK,
                        a.shape.hidden)));
    }

    final List<Stage> zeroExperts() {
        return router.zeroExperts();
    }
}
