package org.tornadomoe;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinTask;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.reference.Stages;

/**
 * Runs one random token through a kernel and through the definition, so that a kernel with wrong results is never used.
 */
final class SelfCheck {
    /**
     * Leaves room for activations on a rounding boundary and for experts with nearly the same score, which may go
     * either way.
     */
    private static final double TOLERANCE = 5e-2;

    /** Random tokens to try until one goes to an expert of the part. */
    private static final int TRIES = 1000;

    private SelfCheck() {}

    /**
     * @param experts the kernel's weights; for a part of a layer, the token goes to at least one of its experts
     * @throws MoeExecutionException if the kernel needs the check and its result is wrong
     */
    static void run(MoeKernel kernel, FusedMoeConfig config, Int8Experts experts) {
        if (!kernel.needsSelfCheck()) {
            return;
        }
        Routing handed = config.router().isHandedIn() ? anyRouting(config, experts) : null;
        ScalarType type = config.inDtype();
        float[] hidden = token(config, experts, handed != null);
        MemorySegment given = HiddenStates.memory(type, hidden, hidden.length);
        HiddenStates.read(type, given, hidden, hidden.length);
        float[] output = new float[hidden.length];
        MemorySegment taken = HiddenStates.memory(type, output, output.length);
        ChosenExperts chosen = handed == null ? null : handed.chosen();
        // Meanwhile a device's first call copies the weights there.
        ForkJoinTask<Stages> definition = ForkJoinPool.commonPool()
                .submit(() -> handed == null
                        ? Reference.forward(experts, hidden, 1)
                        : Reference.forward(experts, hidden, new double[0], handed));
        try {
            kernel.forward(given, 1, taken, chosen, null);
        } catch (RuntimeException | Error failure) {
            definition.quietlyJoin(); // the experts may be closed then
            throw failure;
        }
        HiddenStates.read(type, taken, output, output.length);
        Stages expected = definition.join();
        double error = Numerics.relativeL2(Numerics.widen(output), expected.output());
        boolean nothing = Arrays.stream(expected.output()).allMatch(value -> value == 0)
                && IntStream.range(0, output.length).allMatch(i -> output[i] == 0);
        if (!(error < TOLERANCE || nothing)) {
            throw new MoeExecutionException("the kernels give wrong numbers on " + kernel.device()
                    + ": relative L2 error " + error + " of one token against the definition, expected less than "
                    + TOLERANCE);
        }
    }

    /** The first random token that goes to a local expert. */
    private static float[] token(FusedMoeConfig config, Int8Experts experts, boolean any) {
        float[] hidden = new float[config.hiddenDim()];
        SplittableRandom random = new SplittableRandom(1);
        for (int attempt = 0; attempt < TRIES; attempt++) {
            for (int i = 0; i < hidden.length; i++) {
                hidden[i] = (float) random.nextGaussian();
            }
            if (any || !experts.isPart()) {
                break;
            }
            double[] logits = Router.logits(config, experts.router(), Numerics.widen(hidden), 1);
            int[] ids = Router.route(config, experts.router(), logits, 1).ids();
            if (Arrays.stream(ids).anyMatch(id -> isHere(config, experts, id))) {
                break;
            }
        }
        return hidden;
    }

    private static boolean isHere(FusedMoeConfig config, Int8Experts experts, int id) {
        return id >= 0 && id < config.globalNumExperts() && experts.expertMap(id) >= 0;
    }

    /** Routes one token to the first experts, local ones before others, and to the shared ones, with equal weights. */
    private static Routing anyRouting(FusedMoeConfig config, Int8Experts experts) {
        int e = config.numExperts();
        int[] ids = IntStream.concat(
                        IntStream.concat(
                                        IntStream.range(0, e).filter(id -> isHere(config, experts, id)),
                                        IntStream.range(0, e).filter(id -> !isHere(config, experts, id)))
                                .limit(config.expertsPerToken()),
                        IntStream.range(e, config.globalNumExperts()))
                .toArray();
        double[] weights = new double[ids.length];
        Arrays.fill(weights, 1.0 / ids.length);
        return new Routing(1, ids.length, ids, weights);
    }
}
