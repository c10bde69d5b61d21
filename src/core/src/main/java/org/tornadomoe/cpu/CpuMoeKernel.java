package org.tornadomoe.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;

/**
 * One layer on the cores. M tokens, P pairs of a token and an expert, R rows of the first GEMM's input (M, or P with router weights on
 * the input), H hidden, I intermediate. Calls take turns. A stage's tasks write to places of their own and each place's sum has one order, so the
 * result doesn't depend on the number of threads, and with one scale a token not on the other tokens. Another {@link #lane} has activations of its own.
 */
final class CpuMoeKernel implements MoeKernel, Adapters, Replicated, Profiled {
    static final String DEVICE = "cpu (" + Arithmetic.best().description() + ", "
            + Team.shared().threads() + (Team.shared().threads() == 1 ? " thread)" : " threads)");

    private static final int ROWS = PackedWeights.ROWS;

    /** Columns whose int8 products add up to at most 2^24, up to which float has every integer. */
    private static final int EXACT_COLUMNS = 1024;

    /** Columns that are summed in float before the sum goes on in double, where activations are float. */
    private static final int FLOAT_COLUMNS = 256;

    /**
     * From here on so many products with int8 weights may not add up in float; a row with such a value is summed in
     * double.
     */
    private static final float LARGE = 0x1p112f;

    private final FusedMoeConfig config;
    private final Int8Scheme scheme;
    private final boolean int8;
    private final boolean roundToNearest;

    // Scales of activations of each local expert, null if they are found at run time; and whether a pair has a row of
    // its own.
    private final float @Nullable [] knownA1;
    private final float @Nullable [] knownA2;
    private final boolean ownRows;
    private final Arithmetic arithmetic;
    private final Team team;
    private final HostRouter router;
    private final Activation activation;
    private final int h;
    private final int i;
    private final int pairsPerToken;
    private final int pairsPerRow;
    private final int[] expertMap;
    private final Arena arena = Arena.ofShared();
    private final boolean ownsWeights;
    private final PackedWeights w13;
    private final PackedWeights w2;
    private final @Nullable LoraAdapter[] adapters;
    private @Nullable Replicas replicas;

    private final ReentrantLock turn = new ReentrantLock();
    private final Scratch scratch = new Scratch();
    private final Team.Stage prepare = this::prepare;
    private final Team.Stage quantizeTokens = this::quantizeTokens;
    private final Team.Stage shrinkTokens = this::shrinkTokens;
    private final Team.Stage gateUp = this::gateUp;
    private final Team.Stage quantizePairs = this::quantizePairs;
    private final Team.Stage shrinkPairs = this::shrinkPairs;
    private final Team.Stage down = this::down;

    // Of the call under way.
    private int tokens;
    private final float[] hidden; // [M, H]
    private final int[] ids; // [P]
    private final int[] own; // [P]: ids, but -1 for pairs that are another device's, where experts move by load
    private final double[] weights; // [P]
    private final float[] a1; // [R, H] as the first GEMM reads it
    private final float[] a1Scales; // [R, groups]
    private final float[] act; // [P, I]
    private final float[] a2; // [P, I] as the second GEMM reads it
    private final float[] a2Scales; // [P, groups]
    private final double[] sums1; // [R, groups] of a1, where zero points need them
    private final double[] sums2; // [P, groups] of a2
    private final boolean[] large1; // [R] where activations are float: whether a row of a1 has a value from LARGE on
    private final boolean[] large2; // [P] of a2
    private final double[] output; // [M, H]
    private final float[] result; // [M, H]
    private final int[] start; // [local experts + 1] into order
    private final int[] order; // pairs by local expert
    private final int[] active; // local experts that have pairs
    private int numActive;
    private float dynamicScale;
    private int @Nullable [] slotOfToken;
    private final double[] shrunk1; // [P, slices, rank]
    private final double[] shrunk2; // [P, rank]

    // What the call's stages took, where asked for.
    private @Nullable Map<String, Long> stageTimes;
    private long stageBegan;

    // What a stage by itself is asked for.
    private float @Nullable [] gemm1Out; // [P, 2I]
    private float @Nullable [] gemm2Out; // [P, H]

    CpuMoeKernel(FusedMoeConfig config, Int8Experts experts, Arithmetic arithmetic, Team team) {
        this.config = config;
        this.arithmetic = arithmetic;
        this.team = team;
        ownsWeights = true;
        scheme = experts.scheme();
        int8 = scheme.quantizesActivations();
        roundToNearest = experts.quantization().roundToNearest();
        knownA1 = experts.a1Scales();
        knownA2 = experts.a2Scales();
        ownRows = config.applyRouterWeightOnInput() || experts.hasInputsOfTheirOwn();
        router = new HostRouter(config, experts.router());
        activation = new Activation(config);
        h = config.hiddenDim();
        i = config.intermediateSizePerPartition();
        pairsPerToken = config.pairsPerToken();
        pairsPerRow = ownRows ? 1 : pairsPerToken;
        expertMap = IntStream.range(0, config.globalNumExperts())
                .map(experts::expertMap)
                .toArray();
        adapters = new LoraAdapter[config.isLoraEnabled() ? config.maxLoras() : 0];
        try {
            w13 = PackedWeights.of(experts.w13(), packedGateUpRows(), this::gateUpRow, experts.w13Bias(), arena);
            w2 = PackedWeights.of(experts.w2(), h, row -> row, experts.w2Bias(), arena);
            int m = config.maxNumTokens();
            int rows = Math.multiplyExact(m, rowsPerToken());
            int pairs = Math.multiplyExact(m, pairsPerToken);
            hidden = new float[Math.multiplyExact(m, h)];
            ids = new int[pairs];
            own = config.moeParallelConfig().enableEplb() ? new int[pairs] : ids;
            replicas = own == ids ? null : Replicas.allHere(expertMap.length, e -> expertMap[e]);
            weights = new double[pairs];
            a1 = int8 || ownRows ? new float[Math.multiplyExact(rows, h)] : hidden;
            a1Scales = new float[int8 ? Math.multiplyExact(rows, w13.groups()) : 0];
            act = new float[Math.multiplyExact(pairs, i)];
            a2 = int8 ? new float[act.length] : act;
            a2Scales = new float[int8 ? Math.multiplyExact(pairs, w2.groups()) : 0];
            sums1 = new double[w13.zeroPoints() == null ? 0 : Math.multiplyExact(rows, w13.groups())];
            sums2 = new double[w2.zeroPoints() == null ? 0 : Math.multiplyExact(pairs, w2.groups())];
            large1 = new boolean[int8 ? 0 : rows];
            large2 = new boolean[int8 ? 0 : pairs];
            output = new double[hidden.length];
            result = new float[hidden.length];
            start = new int[w13.experts() + 1];
            order = new int[pairs];
            active = new int[w13.experts()];
            int rank = config.isLoraEnabled() ? config.maxLoraRank() : 0;
            shrunk1 = new double[Math.multiplyExact(pairs, LoraAdapter.slices(config) * rank)];
            shrunk2 = new double[Math.multiplyExact(pairs, rank)];
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    /** A lane over another's weights. */
    private CpuMoeKernel(CpuMoeKernel first) {
        config = first.config;
        ownsWeights = false;
        scheme = first.scheme;
        int8 = first.int8;
        roundToNearest = first.roundToNearest;
        knownA1 = first.knownA1;
        knownA2 = first.knownA2;
        ownRows = first.ownRows;
        arithmetic = first.arithmetic;
        team = first.team;
        router = first.router;
        activation = first.activation;
        h = first.h;
        i = first.i;
        pairsPerToken = first.pairsPerToken;
        pairsPerRow = first.pairsPerRow;
        expertMap = first.expertMap;
        w13 = first.w13;
        w2 = first.w2;
        adapters = first.adapters;
        hidden = new float[first.hidden.length];
        ids = new int[first.ids.length];
        own = first.own == first.ids ? ids : new int[ids.length];
        replicas = first.replicas;
        weights = new double[first.weights.length];
        a1 = first.a1 == first.hidden ? hidden : new float[first.a1.length];
        a1Scales = new float[first.a1Scales.length];
        act = new float[first.act.length];
        a2 = first.a2 == first.act ? act : new float[first.a2.length];
        a2Scales = new float[first.a2Scales.length];
        sums1 = new double[first.sums1.length];
        sums2 = new double[first.sums2.length];
        large1 = new boolean[first.large1.length];
        large2 = new boolean[first.large2.length];
        output = new double[first.output.length];
        result = new float[first.result.length];
        start = new int[first.start.length];
        order = new int[first.order.length];
        active = new int[first.active.length];
        shrunk1 = new double[first.shrunk1.length];
        shrunk2 = new double[first.shrunk2.length];
    }

    @Override
    public MoeKernel lane() {
        return new CpuMoeKernel(this);
    }

    // ---- w13's rows: blocks of as many gates and the ups that belong to them, so that a task can activate what it has

    private int half() {
        return config.activation().isGated() ? ROWS / 2 : ROWS;
    }

    private int packedGateUpRows() {
        return Math.ceilDiv(i, half()) * ROWS;
    }

    /** The tensor's row of a packed one, −1 if that fills up. */
    private int gateUpRow(int packed) {
        int column = packed / ROWS * half() + packed % ROWS % half();
        boolean up = packed % ROWS >= half();
        if (column >= i) {
            return -1;
        }
        return config.activation().isInterleaved() ? 2 * column + (up ? 1 : 0) : column + (up ? i : 0);
    }

    // ---- a call

    @Override
    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        adapters[slot] = adapter;
    }

    @Override
    public void forward(
            MemorySegment from, int count, MemorySegment into, @Nullable ChosenExperts chosen, int @Nullable [] slots) {
        turn.lock();
        try {
            tokens = count;
            slotOfToken = slots;
            HiddenStates.read(config.inDtype(), from, hidden, tokens * h);
            int pairs = tokens * pairsPerToken;
            boolean handed = config.router().isHandedIn();
            if (handed) {
                ChosenExperts given = Objects.requireNonNull(chosen, "chosen");
                System.arraycopy(given.ids(), 0, ids, 0, pairs);
                for (int p = 0; p < pairs; p++) {
                    weights[p] = given.weights()[p];
                }
            }
            startStages();
            boolean together = team.begin();
            try {
                team.run(together, tokens, prepare, scratch);
                if (isDynamicTensor()) {
                    int rows = tokens * rowsPerToken();
                    dynamicScale = Int8Activations.tensorScale(ownRows ? a1 : hidden, rows * h);
                    team.run(together, rows, quantizeTokens, scratch);
                }
                place();
                group();
                endStage("routeAndQuantize");
                if (slotOfToken != null) {
                    team.run(together, pairs, shrinkTokens, scratch);
                    endStage("loraGateUp");
                }
                team.run(together, numActive * w13.blocks(), gateUp, scratch);
                endStage("gateUpAndActivate");
                betweenGemms(together);
                endStage("quantizePairs");
                if (slotOfToken != null) {
                    team.run(together, pairs, shrinkPairs, scratch);
                    endStage("loraDown");
                }
                team.run(together, w2.blocks(), down, scratch);
                endStage("downAndCombine");
            } finally {
                if (together) {
                    team.end();
                }
            }
            HiddenStates.write(config.inDtype(), result, tokens * h, into);
            if (chosen != null && !handed) {
                System.arraycopy(ids, 0, chosen.ids(), 0, pairs);
                for (int p = 0; p < pairs; p++) {
                    chosen.weights()[p] = (float) weights[p];
                }
            }
        } catch (IllegalStateException failure) {
            throw new MoeExecutionException("the CPU kernel failed: " + failure.getMessage(), failure);
        } finally {
            turn.unlock();
        }
    }

    @Override
    public void setReplicas(Replicas replicas) {
        turn.lock();
        try {
            this.replicas = replicas;
        } finally {
            turn.unlock();
        }
    }

    @Override
    public int[] expertLoads() {
        return IntStream.range(0, active.length)
                .map(e -> start[e + 1] - start[e])
                .toArray();
    }

    @Override
    public void timeStages() {
        stageTimes = new LinkedHashMap<>();
    }

    @Override
    public Map<String, Long> stageTimes() {
        return stageTimes == null ? Map.of() : Collections.unmodifiableMap(new LinkedHashMap<>(stageTimes));
    }

    private void startStages() {
        if (stageTimes != null) {
            stageTimes.clear();
            stageBegan = System.nanoTime();
        }
    }

    private void endStage(String name) {
        if (stageTimes != null) {
            long now = System.nanoTime();
            stageTimes.put(name, now - stageBegan);
            stageBegan = now;
        }
    }

    private boolean isDynamicTensor() {
        return scheme == Int8Scheme.W8A8_TENSOR && knownA1 == null;
    }

    private int rowsPerToken() {
        return ownRows ? pairsPerToken : 1;
    }

    /** A token's experts and its rows in int8, but where that waits for other tokens. */
    private void prepare(int token, Scratch s) {
        s.require(Math.max(h, i), router.paddedLogits(), router.groups());
        if (!config.router().isHandedIn()) {
            router.logits(arithmetic, hidden, token * h, s);
            router.route(s, ids, weights, token * pairsPerToken);
        }
        for (int row = token * rowsPerToken(); row < (token + 1) * rowsPerToken(); row++) {
            ownRow(row);
            if (!isDynamicTensor()) {
                quantizeTokens(row, s);
            }
        }
    }

    /** A pair's row, before it is int8, where it has one. */
    private void ownRow(int pair) {
        if (ownRows) {
            double weight = config.applyRouterWeightOnInput() ? weights[pair] : 1;
            for (int c = 0; c < h; c++) {
                a1[pair * h + c] = (float) (hidden[pair / pairsPerToken * h + c] * weight);
            }
        }
    }

    private void quantizeTokens(int row, Scratch s) {
        s.require(Math.max(h, i), router.paddedLogits(), router.groups());
        quantize(
                ownRows ? a1 : hidden,
                row,
                h,
                w13,
                known(knownA1, ownRows ? ids[row] : -1),
                a1,
                a1Scales,
                sums1,
                large1,
                s);
    }

    /** The scale of an expert's activations; any, where they go to no expert here. */
    private float known(float @Nullable [] scales, int expert) {
        return scales == null ? dynamicScale : scales[Math.max(0, local(expert))];
    }

    private void betweenGemms(boolean together) {
        if (isDynamicTensor()) {
            dynamicScale = Int8Activations.tensorScale(act, tokens * pairsPerToken * i);
        }
        team.run(together, tokens * pairsPerToken, quantizePairs, scratch);
    }

    private void quantizePairs(int pair, Scratch s) {
        s.require(Math.max(h, i), router.paddedLogits(), router.groups());
        if (local(own[pair]) >= 0) {
            quantize(act, pair, i, w2, known(knownA2, own[pair]), a2, a2Scales, sums2, large2, s);
        }
    }

    /**
     * A row as the scheme has it; where activations stay float, whether they are large, and the sums that zero points
     * need.
     */
    private void quantize(
            float[] x,
            int row,
            int width,
            PackedWeights w,
            float known,
            float[] into,
            float[] scales,
            double[] sums,
            boolean[] large,
            Scratch s) {
        int at = row * width;
        switch (scheme) {
            case W8A8_CHANNEL -> scales[row] = Int8Activations.quantize(x, at, width, s.bytes, 0);
            case W8A8_TENSOR -> {
                scales[row] = known;
                Int8Activations.quantize(x, at, width, scales[row], s.bytes, 0);
            }
            case W8A8_BLOCK -> {
                for (int g = 0; g < w.groups(); g++) {
                    int column = g * w.colsPerGroup();
                    int count = Math.min(w.colsPerGroup(), width - column);
                    scales[row * w.groups() + g] =
                            Int8Activations.quantizeGroup(x, at + column, count, roundToNearest, s.bytes, column);
                }
            }
            case W8A16_CHANNEL, W8A16_GROUP -> {
                float greatest = 0;
                for (int c = at; c < at + width; c++) {
                    greatest = Math.max(greatest, Math.abs(x[c]));
                }
                large[row] = greatest >= LARGE;
                for (int g = 0; g < w.groups() && sums.length != 0; g++) {
                    double sum = 0;
                    for (int c = g * w.colsPerGroup(); c < Math.min((g + 1L) * w.colsPerGroup(), width); c++) {
                        sum += x[at + c];
                    }
                    sums[row * w.groups() + g] = sum;
                }
                return;
            }
        }
        for (int c = 0; c < width; c++) {
            into[at + c] = s.bytes[c];
        }
    }

    /** The local number of an expert; −1 if it lives elsewhere or has no weights. */
    private int local(int id) {
        return id >= 0 && id < expertMap.length ? expertMap[id] : -1;
    }

    /** Which pairs are done here. */
    private void place() {
        if (replicas != null) {
            for (int p = 0; p < tokens * pairsPerToken; p++) {
                own[p] = replicas.isHere(ids[p], p / pairsPerToken) ? ids[p] : -1;
            }
        }
    }

    /** Pairs in the order of their local experts, ascending within one. */
    private void group() {
        int pairs = tokens * pairsPerToken;
        Arrays.fill(start, 0);
        for (int p = 0; p < pairs; p++) {
            int e = local(own[p]);
            if (e >= 0) {
                start[e + 1]++;
            } else if (isDynamicTensor()) {
                Arrays.fill(act, p * i, (p + 1) * i, 0);
            }
        }
        numActive = 0;
        for (int e = 0; e < active.length; e++) {
            if (start[e + 1] > 0) {
                active[numActive++] = e;
            }
            start[e + 1] += start[e];
        }
        for (int p = 0; p < pairs; p++) {
            int e = local(own[p]);
            if (e >= 0) {
                order[start[e]++] = p;
            }
        }
        System.arraycopy(start, 0, start, 1, active.length);
        start[0] = 0;
    }

    /** Some activations: of an expert that has pairs, a block's, for all of them. */
    private void gateUp(int task, Scratch s) {
        int block = task % w13.blocks();
        int e = active[task / w13.blocks()];
        int column = block * half();
        int count = Math.min(half(), i - column);
        for (int first = start[e]; first < start[e + 1]; first += Arithmetic.TOKENS) {
            int some = Math.min(Arithmetic.TOKENS, start[e + 1] - first);
            multiply(w13, w13.block(e, block), a1, a1Scales, sums1, large1, pairsPerRow, first, some, s);
            for (int t = 0; t < some; t++) {
                int pair = order[first + t];
                LoraAdapter adapter = adapter(pair);
                if (adapter != null) {
                    expandGateUp(adapter, pair, block, s.total, t * ROWS);
                }
                if (gemm1Out != null) {
                    for (int r = 0; r < ROWS; r++) {
                        int row = w13.rowOf()[block * ROWS + r];
                        if (row >= 0) {
                            gemm1Out[pair * config.gateUpRows() + row] = (float) s.total[t * ROWS + r];
                        }
                    }
                }
                activation.apply(s.total, t * ROWS, t * ROWS + half(), count, act, pair * i + column);
            }
        }
    }

    /** Some columns of the output, of all tokens: what all experts give there. */
    private void down(int block, Scratch s) {
        int column = block * ROWS;
        int count = Math.min(ROWS, h - column);
        for (int m = 0; m < tokens; m++) {
            Arrays.fill(output, m * h + column, m * h + column + count, 0);
        }
        for (int a = 0; a < numActive; a++) {
            int e = active[a];
            for (int first = start[e]; first < start[e + 1]; first += Arithmetic.TOKENS) {
                int some = Math.min(Arithmetic.TOKENS, start[e + 1] - first);
                multiply(w2, w2.block(e, block), a2, a2Scales, sums2, large2, 1, first, some, s);
                for (int t = 0; t < some; t++) {
                    int pair = order[first + t];
                    double weight = config.applyRouterWeightOnInput() ? 1 : weights[pair];
                    for (int r = t * ROWS; r < t * ROWS + count; r++) {
                        s.total[r] *= weight;
                    }
                    LoraAdapter adapter = adapter(pair);
                    if (adapter != null) {
                        expandDown(adapter, pair, column, count, weight, s.total, t * ROWS);
                    }
                    if (gemm2Out != null) {
                        for (int r = 0; r < count; r++) {
                            gemm2Out[pair * h + column + r] = (float) s.total[t * ROWS + r];
                        }
                    }
                    add(s.total, t * ROWS, count, output, pair / pairsPerToken * h + column);
                }
            }
        }
        addZeroExperts(column, count);
        for (int m = 0; m < tokens; m++) {
            for (int c = m * h + column; c < m * h + column + count; c++) {
                result[c] = (float) output[c];
            }
        }
    }

    private static void add(double[] from, int at, int count, double[] into, int to) {
        for (int c = 0; c < count; c++) {
            into[to + c] += from[at + c];
        }
    }

    /** The token itself times the weights of its zero experts, on the rank that has expert 0. */
    private void addZeroExperts(int column, int count) {
        if (config.router().numZeroExperts() == 0
                || expertMap[0] < 0
                || config.moeParallelConfig().tpRank() != 0) {
            return;
        }
        for (int p = 0; p < tokens * pairsPerToken; p++) {
            if (own[p] >= config.globalNumExperts()) {
                int at = p / pairsPerToken * h + column;
                for (int c = at; c < at + count; c++) {
                    output[c] += weights[p] * hidden[c];
                }
            }
        }
    }

    /**
     * A block of an expert times some of its pairs, with scales and biases, into {@code s.total}: the definition's sums in the
     * definition's order, exactly so where activations are int8.
     */
    private void multiply(
            PackedWeights w,
            int block,
            float[] a,
            float[] scales,
            double[] sums,
            boolean[] large,
            int pairsPerRow,
            int first,
            int count,
            Scratch s) {
        int values = count * ROWS;
        double[] sum = s.sum;
        double[] total = s.total;
        float[] tile = s.tile;
        Arrays.fill(total, 0, values, 0);
        int most = int8 ? EXACT_COLUMNS : FLOAT_COLUMNS;
        for (int g = 0; g < w.groups(); g++) {
            int end = Math.min((g + 1) * w.colsPerGroup(), w.cols());
            for (int c = g * w.colsPerGroup(); c < end; c += most) {
                for (int t = 0; t < count; t++) {
                    s.from[t] = order[first + t] / pairsPerRow * w.cols() + c;
                }
                long at = ((long) block * w.cols() + c) * ROWS;
                arithmetic.dot(w.values(), at, Math.min(most, end - c), a, s.from, count, tile);
                if (c == g * w.colsPerGroup()) {
                    for (int v = 0; v < values; v++) {
                        sum[v] = tile[v];
                    }
                } else {
                    for (int v = 0; v < values; v++) {
                        sum[v] += tile[v];
                    }
                }
            }
            int at = (block * w.groups() + g) * ROWS;
            for (int t = 0; t < count; t++) {
                int ofToken = order[first + t] / pairsPerRow;
                if (!int8 && large[ofToken]) {
                    sumInDouble(w, block, g * w.colsPerGroup(), end, a, ofToken * w.cols(), sum, t * ROWS);
                }
                int row = ofToken * w.groups() + g;
                if (w.zeroPoints() != null) {
                    subtract(w.zeroPoints(), at, sums[row], sum, t * ROWS);
                }
                scale(w.scales(), at, int8 ? scales[row] : 1, sum, total, t * ROWS);
            }
        }
        for (int t = 0; t < count && w.bias() != null; t++) {
            for (int r = 0; r < ROWS; r++) {
                total[t * ROWS + r] += w.bias()[block * ROWS + r];
            }
        }
    }

    /** The sums of a block's rows over some columns, products and all in double. */
    private static void sumInDouble(
            PackedWeights w, int block, int from, int end, float[] a, int row, double[] sum, int to) {
        Arrays.fill(sum, to, to + ROWS, 0);
        for (int c = from; c < end; c++) {
            long at = ((long) block * w.cols() + c) * ROWS;
            for (int r = 0; r < ROWS; r++) {
                sum[to + r] += (double) a[row + c] * w.values().get(ValueLayout.JAVA_BYTE, at + r);
            }
        }
    }

    private static void subtract(float[] zeroPoints, int at, double activations, double[] sum, int to) {
        for (int r = 0; r < ROWS; r++) {
            sum[to + r] -= zeroPoints[at + r] * activations;
        }
    }

    private static void scale(float[] scales, int at, float activationScale, double[] sum, double[] total, int to) {
        for (int r = 0; r < ROWS; r++) {
            total[to + r] += sum[to + r] * activationScale * scales[at + r];
        }
    }

    // ---- adapters

    private @Nullable LoraAdapter adapter(int pair) {
        int[] slots = slotOfToken;
        if (slots == null) {
            return null;
        }
        int slot = slots[pair / pairsPerToken];
        return slot < 0 ? null : adapters[slot];
    }

    /** A x for w13, x the token without router weight. */
    private void shrinkTokens(int pair, Scratch s) {
        LoraAdapter adapter = local(own[pair]) < 0 ? null : adapter(pair);
        if (adapter != null) {
            int rows = LoraAdapter.slices(config) * adapter.rank();
            int a = LoraAdapter.offset(adapter.w13A(), ids[pair], rows * h);
            int into = pair * LoraAdapter.slices(config) * config.maxLoraRank();
            product(adapter.w13A(), a, rows, hidden, pair / pairsPerToken * h, h, shrunk1, into);
        }
    }

    private void expandGateUp(LoraAdapter adapter, int pair, int block, double[] total, int at) {
        int rank = adapter.rank();
        int b = LoraAdapter.offset(adapter.w13B(), ids[pair], config.gateUpRows() * rank);
        int shrunk = pair * LoraAdapter.slices(config) * config.maxLoraRank();
        double weight = config.applyRouterWeightOnInput() ? weights[pair] : 1;
        for (int r = 0; r < ROWS; r++) {
            int row = w13.rowOf()[block * ROWS + r];
            if (row >= 0) {
                int from = shrunk + LoraAdapter.slice(config, row) * rank;
                total[at + r] += dot(adapter.w13B(), b + row * rank, shrunk1, from, rank) * weight;
            }
        }
    }

    private void shrinkPairs(int pair, Scratch s) {
        LoraAdapter adapter = local(own[pair]) < 0 ? null : adapter(pair);
        if (adapter != null) {
            int a = LoraAdapter.offset(adapter.w2A(), ids[pair], adapter.rank() * i);
            product(adapter.w2A(), a, adapter.rank(), act, pair * i, i, shrunk2, pair * config.maxLoraRank());
        }
    }

    private void expandDown(
            LoraAdapter adapter, int pair, int column, int count, double weight, double[] total, int at) {
        int rank = adapter.rank();
        int b = LoraAdapter.offset(adapter.w2B(), ids[pair], h * rank) + column * rank;
        for (int r = 0; r < count; r++) {
            total[at + r] += dot(adapter.w2B(), b + r * rank, shrunk2, pair * config.maxLoraRank(), rank) * weight;
        }
    }

    private static void product(float[] a, int from, int rows, float[] x, int at, int cols, double[] into, int to) {
        for (int row = 0; row < rows; row++) {
            double sum = 0;
            for (int c = 0; c < cols; c++) {
                sum += (double) a[from + row * cols + c] * x[at + c];
            }
            into[to + row] = sum;
        }
    }

    private static double dot(float[] b, int from, double[] x, int at, int length) {
        double sum = 0;
        for (int j = 0; j < length; j++) {
            sum += b[from + j] * x[at + j];
        }
        return sum;
    }

    // ---- stages by themselves

    /** See {@link org.tornadomoe.kernel.FusedMoeExperts#stages}. */
    StageValues stages(float[] x, int count, StageValues given) {
        tokens = count;
        int pairs = tokens * pairsPerToken;
        int rows = tokens * rowsPerToken();
        System.arraycopy(x, 0, hidden, 0, tokens * h);
        scratch.require(Math.max(h, i), router.paddedLogits(), router.groups());

        int[] topkIds = given.topkIds();
        float[] topkWeights = given.topkWeights();
        if (!config.router().isHandedIn()) {
            int width = config.numRouterLogits();
            for (int m = 0; m < tokens; m++) {
                for (int l = 0; l < width; l++) {
                    scratch.logits[l] = given.logits()[m * width + l];
                }
                router.route(scratch, ids, weights, m * pairsPerToken);
            }
            topkIds = Arrays.copyOf(ids, pairs);
            topkWeights = narrow(weights, pairs);
        }

        System.arraycopy(given.topkIds(), 0, ids, 0, pairs);
        System.arraycopy(given.topkIds(), 0, own, 0, pairs);
        for (int p = 0; p < pairs; p++) {
            weights[p] = given.topkWeights()[p];
        }
        for (int row = 0; row < rows; row++) {
            ownRow(row);
        }
        if (isDynamicTensor()) {
            dynamicScale = Int8Activations.tensorScale(ownRows ? a1 : hidden, rows * h);
        }
        for (int row = 0; row < rows; row++) {
            quantizeTokens(row, scratch);
        }
        byte[] ownA1 = int8 ? bytes(a1, rows * h) : new byte[0];
        float[] ownA1Scales = Arrays.copyOf(a1Scales, int8 ? rows * w13.groups() : 0);

        if (int8) {
            floats(given.a1(), a1);
            System.arraycopy(given.a1Scales(), 0, a1Scales, 0, rows * w13.groups());
        }
        group();
        float[] gemm1 = new float[pairs * config.gateUpRows()];
        gemm1Out = gemm1;
        team.run(false, numActive * w13.blocks(), gateUp, scratch);
        gemm1Out = null;

        float[] ownAct = new float[pairs * i];
        double[] gateUps = new double[2 * ROWS];
        for (int v = 0; v < pairs * i; v++) {
            int from = v / i * config.gateUpRows();
            int c = v % i;
            boolean alternating = config.activation().isInterleaved();
            gateUps[0] = given.gemm1()[from + (alternating ? 2 * c : c)];
            gateUps[1] = config.activation().isGated() ? given.gemm1()[from + (alternating ? 2 * c + 1 : i + c)] : 1;
            activation.apply(gateUps, 0, 1, 1, ownAct, v);
        }

        System.arraycopy(given.act(), 0, act, 0, pairs * i);
        if (isDynamicTensor()) {
            dynamicScale = Int8Activations.tensorScale(act, pairs * i);
        }
        for (int p = 0; p < pairs; p++) {
            quantize(act, p, i, w2, known(knownA2, own[p]), a2, a2Scales, sums2, large2, scratch);
        }
        byte[] ownA2 = int8 ? bytes(a2, pairs * i) : new byte[0];
        float[] ownA2Scales = Arrays.copyOf(a2Scales, int8 ? pairs * w2.groups() : 0);

        if (int8) {
            floats(given.a2(), a2);
            System.arraycopy(given.a2Scales(), 0, a2Scales, 0, pairs * w2.groups());
        }
        float[] gemm2 = new float[pairs * h];
        gemm2Out = gemm2;
        team.run(false, w2.blocks(), down, scratch);
        gemm2Out = null;

        Arrays.fill(output, 0, tokens * h, 0);
        for (int p = 0; p < pairs; p++) {
            for (int c = 0; c < h; c++) {
                output[p / pairsPerToken * h + c] += given.gemm2()[p * h + c];
            }
        }
        addZeroExperts(0, h);
        return aligned(given, topkIds, topkWeights, ownA1, ownA1Scales, gemm1, ownAct, ownA2, ownA2Scales, gemm2);
    }

    private StageValues aligned(
            StageValues given,
            int[] topkIds,
            float[] topkWeights,
            byte[] ownA1,
            float[] ownA1Scales,
            float[] gemm1,
            float[] ownAct,
            byte[] ownA2,
            float[] ownA2Scales,
            float[] gemm2) {
        int pairs = tokens * pairsPerToken;
        IntStream.Builder sorted = IntStream.builder();
        IntStream.Builder blocks = IntStream.builder();
        for (int e = 0; e < expertMap.length; e++) {
            int places = 0;
            for (int p = 0; p < pairs; p++) {
                if (given.topkIds()[p] == e) {
                    if (places % given.blockSize() == 0) {
                        blocks.add(expertMap[e]);
                    }
                    sorted.add(p);
                    places++;
                }
            }
            for (; places % given.blockSize() != 0; places++) {
                sorted.add(pairs);
            }
        }
        return new StageValues(
                given.logits(),
                topkIds,
                topkWeights,
                given.blockSize(),
                sorted.build().toArray(),
                blocks.build().toArray(),
                ownA1,
                ownA1Scales,
                gemm1,
                ownAct,
                ownA2,
                ownA2Scales,
                gemm2,
                narrow(output, tokens * h));
    }

    private static float[] narrow(double[] values, int count) {
        float[] narrow = new float[count];
        for (int v = 0; v < count; v++) {
            narrow[v] = (float) values[v];
        }
        return narrow;
    }

    private static byte[] bytes(float[] values, int count) {
        byte[] bytes = new byte[count];
        for (int v = 0; v < count; v++) {
            bytes[v] = (byte) values[v];
        }
        return bytes;
    }

    private static void floats(byte[] values, float[] into) {
        for (int v = 0; v < values.length; v++) {
            into[v] = values[v];
        }
    }

    // ---- the rest

    @Override
    public String device() {
        return DEVICE;
    }

    @Override
    public long deviceBytes() {
        return (ownsWeights ? w13.bytes() + w2.bytes() + router.bytes() : 0)
                + 4L * (hidden.length + act.length + result.length + a1Scales.length + a2Scales.length)
                + (a1 == hidden ? 0 : 4L * a1.length)
                + (a2 == act ? 0 : 4L * a2.length)
                + 8L * (output.length + sums1.length + sums2.length + shrunk1.length + shrunk2.length);
    }

    @Override
    public void close() {
        arena.close();
    }
}
