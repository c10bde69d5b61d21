package org.tornadomoe.cpu;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.host.Arithmetic;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;

/**
 * One layer on the cores; letters as in {@link CpuWeights}. Calls take turns. A stage's tasks write to places of their
 * own and each place's sum has one order, so the result doesn't depend on the number of threads, and with one scale a
 * token not on the other tokens. Another {@link #lane} has activations of its own.
 */
final class CpuMoeKernel implements MoeKernel, Adapters, Replicated, Profiled {
    private static final int ROWS = PackedWeights.ROWS;

    private final CpuWeights layer;
    private final boolean ownsWeights;
    private final Arithmetic arithmetic;
    private final Team team;
    private final CpuBuffers call;
    private final CpuQuantizer quantizer;
    private final CpuAdapters adapters;
    private final CpuGemm gemm;
    private @Nullable Replicas replicas;

    private final ReentrantLock turn = new ReentrantLock();
    private final Scratch scratch = new Scratch();
    private final Team.Stage blockOfLogits = this::blockOfLogits;
    private final Team.Stage prepare = this::prepare;
    private final Team.Stage quantizeInput = this::quantizeInput;
    private final Team.Stage shrinkTokens;
    private final Team.Stage gateUp = this::gateUp;
    private final Team.Stage quantizeActivations = this::quantizeActivations;
    private final Team.Stage shrinkPairs;
    private final Team.Stage down = this::down;
    private final Team.Stage gatherGateUp;

    /** Whether the call has too few tokens for each thread to have one, and logits are found before the rest. */
    private boolean fewTokens;

    // What the call's stages took, where asked for.
    private @Nullable Map<String, Long> stageTimes;
    private long stageBegan;

    /** A layer of its own weights, which it frees. */
    CpuMoeKernel(FusedMoeConfig config, Int8Experts experts, Arithmetic arithmetic, Team team) {
        this(new CpuWeights(config, experts, arithmetic), true, arithmetic, team);
    }

    private CpuMoeKernel(CpuWeights layer, boolean ownsWeights, Arithmetic arithmetic, Team team) {
        this.layer = layer;
        this.ownsWeights = ownsWeights;
        this.arithmetic = arithmetic;
        this.team = team;
        try {
            call = new CpuBuffers(layer, team.threads());
        } catch (RuntimeException | Error failure) {
            if (ownsWeights) {
                layer.close();
            }
            throw failure;
        }
        quantizer = new CpuQuantizer(layer, call);
        adapters = new CpuAdapters(layer, call);
        gemm = new CpuGemm(arithmetic, layer, call, adapters);
        gatherGateUp = (place, _) -> gemm.gatherGateUp(place);
        shrinkTokens = adapters::shrinkTokens;
        shrinkPairs = adapters::shrinkPairs;
        replicas = call.own == call.ids ? null : Replicas.allHere(layer.expertMap.length, e -> layer.expertMap[e]);
    }

    @Override
    public MoeKernel lane() {
        CpuMoeKernel lane = new CpuMoeKernel(layer, false, arithmetic, team);
        lane.replicas = replicas;
        return lane;
    }

    @Override
    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        layer.adapters[slot] = adapter;
    }

    @Override
    public void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        turn.lock();
        try {
            call.tokens = tokens;
            adapters.begin(slotOfToken);
            HiddenStates.read(layer.config.inDtype(), hidden, call.hidden, tokens * layer.h);
            int pairs = tokens * layer.pairsPerToken;
            if (layer.handedIn) {
                ChosenExperts given = Objects.requireNonNull(chosen, "chosen");
                System.arraycopy(given.ids(), 0, call.ids, 0, pairs);
                for (int p = 0; p < pairs; p++) {
                    call.weights[p] = given.weights()[p];
                }
            }
            startStages();
            boolean together = team.begin();
            try {
                run(together, pairs);
            } finally {
                if (together) {
                    team.end();
                }
            }
            HiddenStates.write(layer.config.inDtype(), call.result, tokens * layer.h, output);
            if (chosen != null && !layer.handedIn) {
                System.arraycopy(call.ids, 0, chosen.ids(), 0, pairs);
                for (int p = 0; p < pairs; p++) {
                    chosen.weights()[p] = (float) call.weights[p];
                }
            }
        } catch (IllegalStateException failure) {
            throw new MoeExecutionException("the CPU kernel failed: " + failure.getMessage(), failure);
        } finally {
            turn.unlock();
        }
    }

    private void run(boolean together, int pairs) {
        fewTokens = !layer.handedIn && together && call.tokens < team.threads();
        if (fewTokens) {
            team.run(together, call.tokens * layer.router.logitBlocks(), blockOfLogits, scratch);
        }
        team.run(together, call.tokens, prepare, scratch);
        if (layer.dynamicTensor) {
            quantizer.scaleInput();
            team.run(together, call.tokens * layer.rowsPerToken, quantizeInput, scratch);
        }
        keepOwnPairs();
        call.group();
        endStage("routeAndQuantize");
        if (adapters.isOn()) {
            team.run(together, pairs, shrinkTokens, scratch);
            endStage("loraGateUp");
        }
        call.laidOut = layer.products1 != null && call.sharesExperts();
        if (call.laidOut) {
            team.run(together, localPairs(), gatherGateUp, scratch);
            endStage("layOutPairs");
        }
        int gateUpTasks = call.numActive * layer.w13.blocks();
        int threads = together ? team.threads() : 1;
        call.gateUpAtOnce = call.blocksAtOnce(layer.w13, layer.products1, gateUpTasks, threads);
        call.downAtOnce = call.blocksAtOnce(layer.w2, layer.products2, layer.w2.blocks(), threads);
        team.run(together, gateUpTasks / call.gateUpAtOnce, gateUp, scratch);
        endStage("gateUpAndActivate");
        quantizer.scaleActivations();
        team.run(together, pairs, quantizeActivations, scratch);
        endStage("quantizePairs");
        if (adapters.isOn()) {
            team.run(together, pairs, shrinkPairs, scratch);
            endStage("loraDown");
        }
        team.run(together, layer.w2.blocks() / call.downAtOnce, down, scratch);
        endStage("downAndCombine");
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
        return IntStream.range(0, call.active.length)
                .map(e -> call.start[e + 1] - call.start[e])
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

    /** Some logits of a token, where there are fewer tokens than threads. */
    private void blockOfLogits(int task, Scratch s) {
        int blocks = layer.router.logitBlocks();
        int token = task / blocks;
        int at = token * layer.router.paddedLogits();
        layer.router.logits(arithmetic, task % blocks, call.hidden, token * layer.h, call.logits, at);
    }

    /** A token's experts and its rows in int8, but where that waits for other tokens. */
    private void prepare(int token, Scratch s) {
        layer.require(s);
        if (!layer.handedIn) {
            if (fewTokens) {
                int padded = layer.router.paddedLogits();
                System.arraycopy(call.logits, token * padded, s.logits, 0, padded);
            } else {
                layer.router.logits(arithmetic, call.hidden, token * layer.h, s);
            }
            layer.router.route(s, call.ids, call.weights, token * layer.pairsPerToken);
        }
        for (int row = token * layer.rowsPerToken; row < (token + 1) * layer.rowsPerToken; row++) {
            quantizer.fillOwnRow(row);
            if (!layer.dynamicTensor) {
                quantizer.quantizeInput(row, s);
            }
        }
    }

    private void quantizeInput(int row, Scratch s) {
        layer.require(s);
        quantizer.quantizeInput(row, s);
    }

    private void quantizeActivations(int pair, Scratch s) {
        layer.require(s);
        if (layer.local(call.own[pair]) >= 0) {
            quantizer.quantizeActivations(pair, s);
        }
    }

    /** How many pairs are of experts here. */
    private int localPairs() {
        return call.start[call.active.length];
    }

    /** Which pairs are done here. */
    private void keepOwnPairs() {
        if (replicas != null) {
            for (int p = 0; p < call.tokens * layer.pairsPerToken; p++) {
                call.own[p] = replicas.isHere(call.ids[p], p / layer.pairsPerToken) ? call.ids[p] : -1;
            }
        }
    }

    /** Some activations: of an expert that has pairs, some blocks', for all of them. */
    private void gateUp(int task, Scratch s) {
        int tasks = layer.w13.blocks() / call.gateUpAtOnce;
        int e = call.active[task / tasks];
        int begin = task % tasks * call.gateUpAtOnce;
        int end = call.start[e + 1];
        for (int first = call.start[e]; first < end; first += layer.pairsAtOnce()) {
            int some = Math.min(layer.pairsAtOnce(), end - first);
            for (int block = begin; block < begin + call.gateUpAtOnce; block++) {
                gateUp(e, block, first, some, s);
            }
        }
    }

    private void gateUp(int e, int block, int first, int some, Scratch s) {
        int half = layer.half();
        int column = block * half;
        int count = Math.min(half, layer.i - column);
        gemm.multiplyGateUp(e, block, first, some, s);
        for (int t = 0; t < some; t++) {
            int pair = call.order[first + t];
            int at = pair * layer.i + column;
            layer.activation(pair).apply(arithmetic, s.total, t * ROWS, t * ROWS + half, count, s.sum, call.act, at);
        }
    }

    /** Some columns of the output, of all tokens: what all experts give there. */
    private void down(int task, Scratch s) {
        int h = layer.h;
        int begin = task * call.downAtOnce;
        int column = begin * ROWS;
        int count = Math.min(call.downAtOnce * ROWS, h - column);
        double[] output = call.output;
        for (int m = 0; m < call.tokens; m++) {
            Arrays.fill(output, m * h + column, m * h + column + count, 0);
        }
        for (int a = 0; a < call.numActive; a++) {
            int end = call.start[call.active[a] + 1];
            for (int first = call.start[call.active[a]]; first < end; first += layer.pairsAtOnce()) {
                int some = Math.min(layer.pairsAtOnce(), end - first);
                for (int block = begin; block < begin + call.downAtOnce; block++) {
                    addDown(call.active[a], block, first, some, s);
                }
            }
        }
        call.addZeroExperts(column, count);
        for (int m = 0; m < call.tokens; m++) {
            for (int c = m * h + column; c < m * h + column + count; c++) {
                call.result[c] = (float) output[c];
            }
        }
    }

    /** What some pairs of an expert give to a block of columns. */
    private void addDown(int e, int block, int first, int some, Scratch s) {
        int column = block * ROWS;
        int count = Math.min(ROWS, layer.h - column);
        gemm.multiplyDown(e, block, first, some, s);
        for (int t = 0; t < some; t++) {
            int token = call.order[first + t] / layer.pairsPerToken;
            add(s.total, t * ROWS, count, call.output, token * layer.h + column);
        }
    }

    private static void add(double[] from, int at, int count, double[] into, int to) {
        for (int c = 0; c < count; c++) {
            into[to + c] += from[at + c];
        }
    }

    @Override
    public String device() {
        return device(arithmetic, team);
    }

    /** For people: what computes, with how many threads. */
    static String device(Arithmetic arithmetic, Team team) {
        return "cpu (" + arithmetic.description() + ", " + team.threads()
                + (team.threads() == 1 ? " thread)" : " threads)");
    }

    @Override
    public long deviceBytes() {
        return (ownsWeights ? layer.bytes() : 0) + call.bytes();
    }

    @Override
    public void close() {
        call.close();
        if (ownsWeights) {
            layer.close();
        }
    }
}
