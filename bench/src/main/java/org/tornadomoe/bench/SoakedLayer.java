package org.tornadomoe.bench;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.ClosedChannelException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.CancellationException;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.LaneException;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.bench.SoakLayers.Kind;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.HiddenStates;

/**
 * A layer that all threads of {@link Soak} call, and what it must answer. While threads call it, its adapters change,
 * and it is closed and loaded anew.
 */
final class SoakedLayer {
    /** The states of a slot: empty, or one of two adapters. */
    private static final int STATES = 3;

    private static final int QUESTIONS = 8;
    private static final float CANARY = 12345.678f;

    /**
     * Hidden states, and the outputs that one thread got for them.
     *
     * @param hidden [M, H], values of the layer's type
     * @param slots the slot of each token's adapter; null for a call without adapters
     * @param answers [states of all slots][M, H]; only one if there are no slots
     */
    private record Question(
            int tokens, float[] hidden, int @Nullable [] slots, float[][] answers, ChosenExperts chosen) {}

    final Kind kind;
    private final Soak soak;
    List<Question> questions = List.of();
    volatile MoeLayer layer;

    /**
     * Odd while an adapter or the layer changes. If it is the same before and after a call, the call has seen
     * {@link #states}.
     */
    volatile int version;

    /** The active state of each slot, 0 for none, as a number in base {@value #STATES}. */
    volatile int states;

    private final int[] held = new int[SoakLayers.SLOTS];

    SoakedLayer(Kind kind, Soak soak) {
        this.soak = soak;
        this.kind = kind;
        layer = kind.open();
    }

    /** Computes the outputs with this thread's own layer. */
    void ask(SplittableRandom random) {
        List<Question> asked = new ArrayList<>();
        try (MoeLayer own = kind.open()) {
            FusedMoeConfig config = own.config();
            while (asked.size() < QUESTIONS) {
                // Small and large numbers of tokens are equally frequent.
                int m = (int) Math.exp(random.nextDouble() * Math.log(soak.tokens + 1));
                float[] hidden = new float[m * config.hiddenDim()];
                SoakLayers.fill(hidden, random, 1);
                for (int v = 0; v < hidden.length && config.inDtype() != ScalarType.F32; v++) {
                    hidden[v] = HiddenStates.widen(config.inDtype(), HiddenStates.narrow(config.inDtype(), hidden[v]));
                }
                int[] slots = !kind.adapts() || random.nextInt(4) == 0
                        ? null
                        : IntStream.range(0, m)
                                .map(_ -> random.nextInt(-1, SoakLayers.SLOTS))
                                .toArray();
                int combinations = slots == null ? 1 : STATES * STATES;
                Question question = new Question(
                        m,
                        hidden,
                        slots,
                        new float[combinations][hidden.length],
                        ChosenExperts.allocate(m, config.pairsPerToken()));
                for (int states = 0; states < combinations; states++) {
                    for (int slot = 0; slot < SoakLayers.SLOTS && slots != null; slot++) {
                        put(own, slot, state(states, slot));
                    }
                    call(own, question, question.answers[states], question.chosen);
                }
                asked.add(question);
            }
        }
        questions = asked;
    }

    private static int state(int states, int slot) {
        return slot == 0 ? states % STATES : states / STATES;
    }

    private void put(MoeLayer into, int slot, int state) {
        if (state == 0) {
            into.removeAdapter(slot);
        } else {
            into.setAdapter(slot, SoakLayers.adapter(into.config(), state - 1, soak.seed));
        }
    }

    /** Changes a slot's adapter, or switches it off or on; one thread at a time. */
    synchronized void change(SplittableRandom random) {
        int slot = random.nextInt(SoakLayers.SLOTS);
        int state = random.nextInt(STATES);
        version++;
        try {
            if (held[slot] > 0 && random.nextBoolean()) {
                boolean on = random.nextBoolean();
                layer.enableAdapter(slot, on);
                state = on ? held[slot] : 0;
            } else {
                put(layer, slot, state);
                held[slot] = state;
            }
            int other = state(states, 1 - slot);
            states = slot == 0 ? state + STATES * other : other + STATES * state;
            soak.tally.changes.increment();
        } finally {
            version++;
        }
    }

    /** Replaces the layer; calls of the old one finish or throw because it is closed. */
    synchronized void reload() {
        MoeLayer old = layer;
        MoeLayer fresh;
        try {
            fresh = kind.open();
        } catch (CancellationException _) {
            soak.tally.refused.increment();
            return;
        } catch (CheckpointException unread) {
            if (!(unread.getCause() instanceof ClosedChannelException)) {
                throw unread;
            }
            soak.tally.refused.increment();
            return;
        }
        version++;
        Arrays.fill(held, 0);
        states = 0;
        layer = fresh;
        version++;
        soak.leaks.forEach(Leak::add);
        if (!soak.leaks.contains(Leak.LAYERS)) {
            old.close();
        }
        soak.tally.loads.increment();
    }

    void call(SplittableRandom random) {
        Question question = questions.get(random.nextInt(questions.size()));
        int before = version;
        int seen = states;
        MoeLayer called = layer;
        float[] output = new float[question.hidden.length + 1];
        output[question.hidden.length] = CANARY;
        ChosenExperts chosen =
                random.nextBoolean() ? ChosenExperts.allocate(question.tokens, question.chosen.topK()) : null;
        try {
            if (question.slots == null && random.nextBoolean()) {
                callNatively(called, question, output, chosen);
            } else {
                call(called, question, output, chosen);
            }
        } catch (LaneException _) {
            soak.tally.refused.increment();
            return;
        } catch (IllegalStateException closed) {
            if (called == layer || !"the layer is closed".equals(closed.getMessage())) {
                throw closed;
            }
            soak.tally.refused.increment();
            return;
        }
        soak.tally.calls.increment();
        boolean known = version == before && before % 2 == 0;
        check(question, output, chosen, known ? seen : -1);
    }

    private void call(MoeLayer called, Question question, float[] output, @Nullable ChosenExperts chosen) {
        if (question.slots == null) {
            called.forward(question.hidden, question.tokens, output, chosen);
        } else {
            called.forward(question.hidden, question.tokens, output, chosen, question.slots);
        }
    }

    private void callNatively(MoeLayer called, Question question, float[] output, @Nullable ChosenExperts chosen) {
        ScalarType type = called.config().inDtype();
        int count = question.hidden.length;
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment in = arena.allocate((long) type.bytes() * count);
            MemorySegment out = arena.allocate((long) type.bytes() * count);
            HiddenStates.write(type, question.hidden, count, in);
            called.forward(in, question.tokens, out, chosen);
            HiddenStates.read(type, out, output, count);
        }
    }

    /** @param states the states that the call has seen; −1 if unknown */
    private void check(Question question, float[] output, @Nullable ChosenExperts chosen, int states) {
        int count = question.hidden.length;
        boolean right = question.slots == null
                ? equal(output, question.answers[0], count)
                : states >= 0
                        ? equal(output, question.answers[states], count)
                        : Stream.of(question.answers).anyMatch(answer -> equal(output, answer, count));
        String what = !right
                ? "other bits than one thread got"
                        + (question.slots == null || states >= 0
                                ? difference(question, output, question.slots == null ? 0 : states)
                                : "")
                : output[count] != CANARY
                        ? "a value written behind the output"
                        : chosen != null
                                        && !(Arrays.equals(chosen.ids(), question.chosen.ids())
                                                && Arrays.equals(chosen.weights(), question.chosen.weights()))
                                ? "other experts or weights than one thread got"
                                : null;
        if (what != null) {
            soak.tally.fail(kind.name() + ", a call of " + question.tokens + " tokens"
                    + (question.slots == null ? "" : ", adapters in state " + states) + ": " + what);
        }
    }

    /**
     * Describes the differences: the first one's position, their number, and whether the output matches another
     * state of the slots.
     */
    private static String difference(Question question, float[] output, int states) {
        float[] expected = question.answers[states];
        int first = Arrays.mismatch(output, 0, expected.length, expected, 0, expected.length);
        long all = IntStream.range(0, expected.length)
                .filter(v -> Float.compare(output[v], expected[v]) != 0)
                .count();
        int token = first / (expected.length / question.tokens);
        List<Integer> others = IntStream.range(0, question.answers.length)
                .filter(other -> equal(output, question.answers[other], expected.length))
                .boxed()
                .toList();
        return " in " + all + " of " + expected.length + " values, first of token " + token
                + (question.slots == null ? "" : " with slot " + question.slots[token]) + ": expected "
                + expected[first] + ", got " + output[first]
                + (others.isEmpty() ? "" : "; right for adapters in state " + others);
    }

    private static boolean equal(float[] got, float[] expected, int count) {
        return Arrays.mismatch(got, 0, count, expected, 0, count) < 0;
    }
}
