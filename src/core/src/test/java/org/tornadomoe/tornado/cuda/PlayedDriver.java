package org.tornadomoe.tornado.cuda;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.BooleanSupplier;
import java.util.stream.IntStream;

/**
 * A {@link RecordingDriver} that also does what it is told, as late as it may and streams in any order that they and
 * their events allow: what isn't waited for is missed. Copies are copies; of a layer's kernels the first that reads the
 * hidden states keeps them, and the last one makes an output of them that is a GPU's own; sums are sums.
 */
@SuppressWarnings("restricted") // the host's memory by its address
public final class PlayedDriver extends RecordingDriver implements AutoCloseable {
    /** Makes a GPU's part of an output of a hidden value. */
    public static float part(float hidden, int device) {
        return hidden * (device + 2) + device;
    }

    /**
     * Something on a stream: an event that it makes happen and one that it waits for, by numbers, 0 for none; and what
     * else it waits for.
     */
    private record Todo(Runnable what, long happens, long awaits, BooleanSupplier mayRun) {
        Todo(Runnable what, long happens, long awaits) {
            this(what, happens, awaits, () -> true);
        }
    }

    private final Arena arena = Arena.ofShared();
    private final Random random;
    private final int h;
    private final Map<Long, Deque<Todo>> streams = new LinkedHashMap<>();

    /** Of each event, the number of the last time that it was recorded; and the numbers that have happened. */
    private final Map<Long, Long> recorded = new HashMap<>();

    private final Set<Long> happened = new HashSet<>();
    private final TreeMap<Long, MemorySegment> memory = new TreeMap<>();

    /** By stream what is recorded, and graphs. */
    private final Map<Long, List<Todo>> recordings = new HashMap<>();

    private final Map<Long, List<Todo>> graphs = new HashMap<>();

    /** By stream: what the first kernel has read, and how many tokens it read that there are. */
    private final Map<Long, float[]> kept = new HashMap<>();

    private final Map<Long, Integer> sizes = new HashMap<>();

    private long records;
    private boolean isDeaf;
    private boolean isBlind;

    /**
     * @param seed of the order
     * @param h hidden size
     */
    public PlayedDriver(long seed, int h) {
        random = new Random(seed);
        this.h = h;
    }

    /** From now on no GPU sees what another writes into its memory for it to see. */
    public void isDeaf() {
        isDeaf = true;
    }

    /** From now on graphs read no hidden states. */
    public void isBlind() {
        isBlind = true;
    }

    /** Memory of a device, from an address on. */
    public void hasMemory(long address, long bytes) {
        memory.put(address, arena.allocate(bytes, 64).fill((byte) 0x7e));
    }

    private MemorySegment at(long address, long bytes) {
        Map.Entry<Long, MemorySegment> array = Objects.requireNonNull(memory.floorEntry(address), "no memory");
        return array.getValue().asSlice(address - array.getKey(), bytes);
    }

    private void put(long stream, Runnable what) {
        put(stream, new Todo(what, 0, 0));
    }

    private void put(long stream, Todo todo) {
        List<Todo> recording = recordings.get(stream);
        if (recording != null) {
            recording.add(todo);
        } else {
            streams.computeIfAbsent(stream, _ -> new ArrayDeque<>()).add(todo);
        }
    }

    /**
     * What a kernel reads before the kernel in front of it is through, as it may in a graph; elsewhere a copy is in
     * front, for which it waits.
     */
    private void putBeforeTheLast(long stream, Runnable what) {
        List<Todo> recording = recordings.get(stream);
        if (recording != null) {
            recording.add(Math.max(0, recording.size() - 1), new Todo(what, 0, 0));
        } else {
            put(stream, what);
        }
    }

    /** Whatever may come next, somewhere. */
    private void step() {
        List<Deque<Todo>> ready = new ArrayList<>();
        for (Deque<Todo> stream : streams.values()) {
            Todo next = stream.peek();
            if (next != null && (next.awaits == 0 || happened.contains(next.awaits)) && next.mayRun.getAsBoolean()) {
                ready.add(stream);
            }
        }
        if (ready.isEmpty()) {
            throw new IllegalStateException("the GPUs wait for one another for ever");
        }
        Todo next = ready.get(random.nextInt(ready.size())).remove();
        next.what.run();
        if (next.happens != 0) {
            happened.add(next.happens);
        }
    }

    @Override
    public void await(long stream) {
        super.await(stream);
        Deque<Todo> todo = streams.get(stream);
        while (todo != null && !todo.isEmpty()) {
            step();
        }
    }

    @Override
    public void awaitEvent(long event) {
        super.awaitEvent(event);
        long number = Objects.requireNonNull(recorded.get(event));
        while (!happened.contains(number)) {
            step();
        }
    }

    /** Whether nothing is under way. */
    public boolean isIdle() {
        return streams.values().stream().allMatch(Deque::isEmpty);
    }

    @Override
    public void record(long event, long stream) {
        super.record(event, stream);
        recorded.put(event, ++records);
        put(stream, new Todo(() -> {}, records, 0));
    }

    @Override
    public void waitFor(long event, long stream) {
        super.waitFor(event, stream);
        put(stream, new Todo(() -> {}, 0, recorded.getOrDefault(event, 0L)));
    }

    @Override
    public void copyToDevice(long to, MemorySegment from, long bytes, long stream) {
        super.copyToDevice(to, from, bytes, stream);
        put(stream, () -> at(to, bytes).copyFrom(from.asSlice(0, bytes)));
    }

    @Override
    public void copyFromDevice(MemorySegment to, long from, long bytes, long stream) {
        super.copyFromDevice(to, from, bytes, stream);
        put(stream, () -> to.asSlice(0, bytes).copyFrom(at(from, bytes)));
    }

    @Override
    public void beginRecording(long stream) {
        super.beginRecording(stream);
        recordings.put(stream, new ArrayList<>());
    }

    @Override
    public long endRecording(long stream) {
        List<Todo> recorded = Objects.requireNonNull(recordings.remove(stream));
        long graph = super.endRecording(stream);
        graphs.put(graph, recorded);
        return graph;
    }

    @Override
    public void launchGraph(long graph, long stream) {
        super.launchGraph(graph, stream);
        Objects.requireNonNull(graphs.get(graph)).forEach(todo -> put(stream, todo));
    }

    @Override
    public void destroyGraph(long graph) {
        super.destroyGraph(graph);
        graphs.remove(graph);
    }

    @Override
    public long addressOfPinned(MemorySegment host) {
        memory.put(host.address(), host);
        return super.addressOfPinned(host);
    }

    @Override
    public long allocate(long bytes) {
        long address = super.allocate(bytes);
        hasMemory(address, bytes);
        return address;
    }

    @Override
    public void clear(long pointer, long bytes, long stream) {
        super.clear(pointer, bytes, stream);
        put(stream, () -> at(pointer, bytes).fill((byte) 0));
    }

    @Override
    public void copyBetween(long to, long toContext, long from, long fromContext, long bytes, long stream) {
        super.copyBetween(to, toContext, from, fromContext, bytes, stream);
        put(stream, () -> at(to, bytes).copyFrom(at(from, bytes)));
    }

    @Override
    void launched(Launched launch) {
        int device = deviceOfContext();
        long[] p = launch.parameters();
        switch (launch.kernel()) {
            case "take" ->
                put(launch.stream(), () -> {
                    write(p[2], 0, read(p[0], 0));
                    if (!isBlind) {
                        at(p[3], 4 * p[4]).copyFrom(at(p[1], 4 * p[4]));
                    }
                });
            case "tell" ->
                put(launch.stream(), () -> {
                    if (!isDeaf) {
                        write(p[0], 0, read(p[1], 0));
                    }
                });
            case "sum" ->
                put(
                        launch.stream(),
                        new Todo(
                                () -> sum(p),
                                0,
                                0,
                                () -> read(p[4], 0) == read(p[2], 0)
                                        || IntStream.range(1, (int) p[8])
                                                .allMatch(part -> read(p[3], part) == read(p[2], 0))));
            case "prepare" -> {
                putBeforeTheLast(launch.stream(), () -> sizes.put(launch.stream(), tokens(p[0])));
                put(launch.stream(), () -> {
                    int tokens = Objects.requireNonNull(sizes.get(launch.stream()));
                    kept.put(launch.stream(), hidden(p[1], tokens));
                });
            }
            case "alignAndQuantize" ->
                put(launch.stream(), () -> kept.put(launch.stream(), hidden(p[3], tokens(p[0]))));
            case "combine" ->
                put(launch.stream(), () -> {
                    float[] hidden = Objects.requireNonNull(kept.get(launch.stream()));
                    if (hidden.length != tokens(p[0]) * h) {
                        throw new IllegalStateException("another chunk's header");
                    }
                    float[] output = new float[hidden.length];
                    for (int i = 0; i < hidden.length; i++) {
                        output[i] = part(hidden[i], device);
                    }
                    at(p[3], 4L * hidden.length).copyFrom(MemorySegment.ofArray(output));
                });
            case "addFloats" ->
                put(launch.stream(), () -> {
                    long from = 4 * p[10];
                    long bytes = 4 * p[11];
                    float[] sums = at(p[0] + from, bytes).toArray(ValueLayout.JAVA_FLOAT);
                    for (int other = 1; other < p[9]; other++) {
                        float[] terms = at(p[other] + from, bytes).toArray(ValueLayout.JAVA_FLOAT);
                        for (int i = 0; i < sums.length; i++) {
                            sums[i] += terms[i];
                        }
                    }
                    at(p[(int) p[8]] + from, bytes).copyFrom(MemorySegment.ofArray(sums));
                });
            default -> put(launch.stream(), () -> {});
        }
    }

    private void sum(long[] p) {
        float[] sums = at(p[0], 4 * p[7]).toArray(ValueLayout.JAVA_FLOAT);
        for (int other = 0; other < p[8] - 1; other++) {
            float[] terms = at(p[1] + 4 * p[6] * other, 4 * p[7]).toArray(ValueLayout.JAVA_FLOAT);
            for (int i = 0; i < sums.length; i++) {
                sums[i] += terms[i];
            }
        }
        at(p[5], 4 * p[7]).copyFrom(MemorySegment.ofArray(sums));
    }

    private int read(long address, int index) {
        return at(address + 4L * index, 4).get(ValueLayout.JAVA_INT, 0);
    }

    private void write(long address, int index, int value) {
        at(address + 4L * index, 4).set(ValueLayout.JAVA_INT, 0, value);
    }

    private int tokens(long header) {
        return at(header, 4).get(ValueLayout.JAVA_INT, 0);
    }

    private float[] hidden(long address, int tokens) {
        return at(address, 4L * tokens * h).toArray(ValueLayout.JAVA_FLOAT);
    }

    @Override
    public void close() {
        arena.close();
    }
}
