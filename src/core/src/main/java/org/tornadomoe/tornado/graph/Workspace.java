package org.tornadomoe.tornado.graph;

import static org.tornadomoe.tornado.graph.ArrayTable.Owner.LAYER;
import static org.tornadomoe.tornado.graph.ArrayTable.Owner.WORKSPACE;

import java.util.List;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tornado.layout.ExpertParts;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The arrays that kernels write and read in a call of up to the configuration's {@code maxNumTokens} tokens. An array
 * that the layer doesn't use has one element.
 *
 * <p>Shape letters: M tokens, E experts, shared ones included, L router logits, H hidden, I intermediate, K top-k and
 * shared experts, P = M·K pairs.
 */
public final class Workspace {
    /** Elements of {@link #header}. */
    public static final int HEADER = 3;

    /** Whatever blocks the GEMMs take, there is room for an alignment to blocks of so many pairs as well. */
    static final int MAX_BLOCK = 16;

    /** [0] = M, [1] = pairs of a block, [2] = number of the launch configuration. */
    public final IntArray header;

    /** [M, H]. */
    public final FloatArray hidden;

    /** Hidden states of 16 bits: [⌈M·H / 2⌉], two to an int. */
    public final IntArray hiddenHalves;

    /** [M, L]. */
    public final FloatArray logits;

    /** [P]. */
    public final IntArray topkIds;

    /** [P]. */
    public final FloatArray topkWeights;

    /** [P]: {@link #topkIds}; where experts move by load, those of this device's pairs, and −1 for the others. */
    public final IntArray placedIds;

    /** [local E]: each expert's pairs if experts move by load, otherwise any array. */
    public final IntArray loads;

    /** [E + 1, 3], the table of {@link Replicas}, if experts move by load; otherwise any array. */
    public final IntArray replicas;

    /** [P]: the expert a pair is sorted by, −1 if it is left out. */
    final IntArray keys;

    /** [P]: a pair's rank among its chunk's pairs of the same expert. */
    final IntArray ranks;

    /** [chunks, E]: counts, then places. */
    final IntArray counts;

    /** Pairs in expert order, each expert's run padded to whole blocks with P. */
    final IntArray sortedIds;

    /** [blocks]: the expert of each block of {@link #sortedIds}, −1 where it has no pair. */
    final IntArray expertIds;

    /** [0] = places of {@link #sortedIds} in use. */
    final IntArray numPostPadded;

    /** {@link #sortedIds} of each of several parts, with P for the pairs of other parts' experts. */
    final List<IntArray> partSortedIds;

    /** {@link #expertIds} of each of several parts, by the number within the part; −1 for other parts' experts. */
    final List<IntArray> partExpertIds;

    /** The hidden states in int8, [M, hiddenInts], or [P, hiddenInts] where each pair has its router weight on them. */
    final IntArray hiddenQ;

    /** [M, hiddenGroups] or [P, hiddenGroups]. */
    final FloatArray hiddenScales;

    /** [1]: the one scale of {@link #hiddenQ}, where there is one. */
    final FloatArray hiddenScale;

    /** Zeros: the sizes for a prebuilt kernel that has nothing to do. */
    final IntArray noSizes;

    /** Sums that a GEMM's kernel writes and reads again. */
    final IntArray sums;

    final FloatArray floatSums;

    /** The first GEMM's output, [P, 2I]. Also large enough for {@link #down}. */
    final FloatArray gateUp;

    /** [P, I]. */
    final FloatArray activated;

    /** [P], the bits of the greatest magnitude of each row of {@link #activated}, if its kernel computes them. */
    final IntArray amax;

    /** {@link #activated} in int8, [P, intermediateInts]. */
    final IntArray activatedQ;

    /** [P, intermediateGroups]. */
    final FloatArray activatedScales;

    /** [1]: the one scale of {@link #activatedQ}, where there is one. */
    final FloatArray activatedScale;

    /**
     * The second GEMM's output, [P, H], times the router's weight. The same array as {@link #gateUp}, which the
     * activation has read by then.
     */
    final FloatArray down;

    /** [M, H]. */
    public final FloatArray output;

    /** Output of 16 bits: [⌈M·H / 2⌉], two to an int. */
    public final IntArray outputHalves;

    private final boolean halves;

    /** @param expertMap the layer's; also takes the place of unused arrays */
    Workspace(LayerShape shape, ArrayTable table, IntArray expertMap) {
        GemmFamily gemm = shape.gemm;
        long m = shape.maxTokens;
        long h = shape.hidden;
        long p = shape.pairs(shape.maxTokens);
        halves = shape.halves;
        long halfInts = halves ? Math.ceilDiv(m * h, 2) : 1;
        int pad = gemm.layout().activationPad();
        header = table.ints("header", WORKSPACE, HEADER);
        hidden = table.floats("hidden", LAYER, m * h);
        hiddenHalves = table.ints("hiddenHalves", WORKSPACE, halfInts);
        logits = table.floats("logits", WORKSPACE, shape.routes ? m * shape.config.numRouterLogits() : 1);
        topkIds = table.ints("topkIds", WORKSPACE, p);
        topkWeights = table.floats("topkWeights", WORKSPACE, p);
        replicas = shape.balanced ? table.ints("replicas", LAYER, Replicas.ROW * (shape.experts + 1L)) : expertMap;
        placedIds = shape.balanced ? table.ints("placedIds", WORKSPACE, p) : topkIds;
        keys = table.ints("keys", WORKSPACE, p);
        ranks = table.ints("ranks", WORKSPACE, p);
        counts = table.ints("counts", WORKSPACE, Math.ceilDiv(p, AlignKernels.CHUNK) * shape.experts);
        long places = shape.mostPlaces();
        long blocks = shape.mostBlocks();
        sortedIds = table.ints("sortedIds", WORKSPACE, places);
        expertIds = table.ints("expertIds", WORKSPACE, blocks);
        numPostPadded = table.ints("numPostPadded", WORKSPACE, 1);
        loads = shape.balanced ? table.ints("loads", WORKSPACE, shape.localExperts) : numPostPadded;
        long inputRows = m * shape.config.inputRowsPerToken();
        hiddenQ = table.ints("hiddenQ", WORKSPACE, shape.packed ? pad + inputRows * shape.hiddenInts : 1);
        hiddenScales = table.floats("hiddenScales", WORKSPACE, shape.packed ? inputRows * shape.hiddenGroups : 1);
        hiddenScale = table.floats("hiddenScale", LAYER, 1);
        boolean apart = shape.parts.count() > 1 && !gemm.layout().numbersAllExperts();
        ExpertParts parts = apart ? shape.parts : new ExpertParts(0, 1);
        partSortedIds = table.ints("partSortedIds", WORKSPACE, parts, experts -> places);
        partExpertIds = table.ints("partExpertIds", WORKSPACE, parts, experts -> blocks);
        noSizes = table.ints("noSizes", WORKSPACE, gemm.prebuiltSizes());
        sums = table.ints("sums", WORKSPACE, gemm.sums(shape));
        floatSums = table.floats("floatSums", WORKSPACE, gemm.floatSums(shape));
        gateUp = table.floats("gateUp", WORKSPACE, pad + p * Math.max(shape.gateUpRows, h));
        activated = table.floats("activated", WORKSPACE, pad + p * shape.intermediate);
        amax = table.ints("amax", WORKSPACE, gemm.activates() ? p : 1);
        activatedQ = table.ints("activatedQ", WORKSPACE, shape.packed ? pad + p * shape.intermediateInts : 1);
        activatedScales = table.floats("activatedScales", WORKSPACE, shape.packed ? p * shape.intermediateGroups : 1);
        activatedScale = table.floats("activatedScale", LAYER, 1);
        down = gateUp;
        output = table.floats("output", LAYER, m * h);
        outputHalves = table.ints("outputHalves", WORKSPACE, halfInts);
    }

    /** The array that a call copies to the device: {@link #hidden}, or the 16-bit values that become it. */
    public TornadoNativeArray incoming() {
        return halves ? hiddenHalves : hidden;
    }

    /** The array that a call copies from the device. */
    public TornadoNativeArray outgoing() {
        return halves ? outputHalves : output;
    }

    /** Pairs in expert order of a part's experts. */
    IntArray sortedIds(int part) {
        return partSortedIds.isEmpty() ? sortedIds : partSortedIds.get(part);
    }

    /** The blocks' experts by their number within a part. */
    IntArray expertIds(int part) {
        return partExpertIds.isEmpty() ? expertIds : partExpertIds.get(part);
    }
}
