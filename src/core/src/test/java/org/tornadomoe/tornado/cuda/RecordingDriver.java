package org.tornadomoe.tornado.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Predicate;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.device.CudaDriver;

/**
 * CUDA's driver without a GPU: takes note of every call, fails where it is told to, and insists on what the real one
 * does: that what is of a context is used in that, and given back once.
 */
@SuppressWarnings("restricted") // reads the bytes that the driver is given
public class RecordingDriver implements CudaDriver {
    /** Multiprocessors of each device. */
    public static final int MULTIPROCESSORS = 7;

    /** A call, and the context that it was made in. */
    public record Call(long context, String what) {
        @Override
        public String toString() {
            return context + ": " + what;
        }
    }

    /** A launch, from the bytes that the driver is given. */
    public record Launched(
            String kernel,
            int gridX,
            int gridY,
            int block,
            int sharedBytes,
            long stream,
            boolean early,
            long[] parameters) {}

    private record Handle(String kind, long context) {}

    private record Failure(Predicate<Call> when, Throwable thrown) {}

    private static final long DEFAULT_STREAM = 0;

    private final List<Call> calls = new ArrayList<>();
    private final List<Launched> launched = new ArrayList<>();
    private final Map<Long, Handle> handles = new LinkedHashMap<>();
    private final Map<Long, String> functions = new LinkedHashMap<>();
    private final Map<Long, Integer> sharedBytes = new TreeMap<>();
    private final Map<Long, Integer> devices = new LinkedHashMap<>();
    private final List<Failure> failures = new ArrayList<>();
    private final Set<Long> recorded = new HashSet<>();
    private final Set<Long> pinned = new HashSet<>();
    private long context;
    private long next = 1000;
    private boolean recording;
    private boolean recordsGraphs;

    /** A context of a device, with one stream. Contexts are numbers of two digits, streams of three. */
    public void add(long context, long stream, int device) {
        devices.put(context, device);
        handles.put(stream, new Handle("stream", context));
    }

    /** The next call that this holds of fails. */
    public void failAt(Predicate<Call> when, Throwable thrown) {
        failures.add(new Failure(when, thrown));
    }

    /** The next call that begins with this fails with the driver's exception. */
    public void failAt(String what) {
        failAt(call -> call.what().startsWith(what), new MoeExecutionException(what + ": CUDA_ERROR"));
    }

    /** The calls since the last time, and forgets them. */
    public List<String> calls() {
        List<String> since = calls.stream().map(Call::toString).toList();
        calls.clear();
        return since;
    }

    /** The launches since the last time, and forgets them. */
    public List<Launched> launched() {
        List<Launched> since = List.copyOf(launched);
        launched.clear();
        return since;
    }

    /** Memories of the host's that are kept where they are. */
    public int pinned() {
        return pinned.size();
    }

    /** Memory, events and modules that haven't been given back. */
    public List<String> open() {
        return handles.values().stream()
                .filter(handle -> !handle.kind.equals("stream") && !handle.kind.equals("function"))
                .map(handle -> handle.context + ": " + handle.kind)
                .toList();
    }

    private void note(String what) {
        Call call = new Call(context, what);
        calls.add(call);
        for (Failure failure : List.copyOf(failures)) {
            if (failure.when.test(call)) {
                failures.remove(failure);
                if (failure.thrown instanceof Error error) {
                    throw error;
                }
                throw (RuntimeException) failure.thrown;
            }
        }
    }

    private long give(String kind) {
        handles.put(next, new Handle(kind, context));
        return next++;
    }

    private void requireOurs(long handle, String kind) {
        assertThat(handles.get(handle)).as("%s %d", kind, handle).isEqualTo(new Handle(kind, context));
    }

    /** Of the calling thread's context. */
    private void requireStream(long stream) {
        Handle handle = Objects.requireNonNull(handles.get(stream), "stream " + stream);
        assertThat(handle.kind).endsWith("stream");
        assertThat(handle.context).as("context of stream %d", stream).isEqualTo(context);
    }

    private void requireOneOf(long handle, String kind) {
        assertThat(Objects.requireNonNull(handles.get(handle)).kind).isEqualTo(kind);
    }

    private void takeBack(long handle, String kind) {
        requireOurs(handle, kind);
        handles.remove(handle);
    }

    @Override
    public int computeCapability(int device) {
        return 90;
    }

    @Override
    public int multiprocessors(int device) {
        return MULTIPROCESSORS;
    }

    @Override
    public int cacheBytes(int device) {
        return 1 << 10;
    }

    @Override
    public int currentDevice() {
        note("currentDevice");
        return Objects.requireNonNull(devices.get(context));
    }

    @Override
    public void setContext(long context) {
        assertThat(devices).containsKey(context);
        note("setContext " + context);
        this.context = context;
    }

    @Override
    public byte[] compile(String source, List<String> options) {
        note("compile " + options);
        return (options + "\n" + source).getBytes(StandardCharsets.UTF_8);
    }

    @Override
    public long loadModule(byte[] binary) {
        note("loadModule");
        return give("module");
    }

    @Override
    public void unloadModule(long module) {
        note("unloadModule");
        takeBack(module, "module");
    }

    @Override
    public long function(long module, String name) {
        note("function " + name);
        requireOurs(module, "module");
        long function = give("function");
        functions.put(function, name);
        return function;
    }

    @Override
    public void allowSharedBytes(long function, int bytes) {
        note("allowSharedBytes " + functions.get(function) + " " + bytes);
        requireOurs(function, "function");
        sharedBytes.put(function, bytes);
    }

    @Override
    public void launch(MemorySegment how, long function, MemorySegment parameters) {
        String name = functions.get(function);
        note("launch " + name);
        requireOurs(function, "function");
        long[] values = new long[(int) (parameters.byteSize() / 8)];
        for (int i = 0; i < values.length; i++) {
            values[i] =
                    parameters.getAtIndex(ValueLayout.ADDRESS, i).reinterpret(8).get(ValueLayout.JAVA_LONG, 0);
        }
        Launched launch = new Launched(
                String.valueOf(name),
                number(how, 0),
                number(how, 4),
                number(how, 12),
                number(how, 24),
                how.get(ValueLayout.JAVA_LONG, 32),
                number(how, 48) == 1,
                values);
        // The z sizes of grid and group.
        assertThat(number(how, 8)).isEqualTo(1);
        assertThat(number(how, 16)).isEqualTo(1);
        assertThat(number(how, 20)).isEqualTo(1);
        requireStream(launch.stream);
        assertThat(launch.sharedBytes).isLessThanOrEqualTo(sharedBytes.getOrDefault(function, 48 << 10));
        if (launch.early) {
            MemorySegment attribute = how.get(ValueLayout.ADDRESS, 40).reinterpret(12);
            assertThat(attribute.address()).isEqualTo(how.address() + LAUNCH_BYTES);
            assertThat(number(attribute, 0)).isEqualTo(PROGRAMMATIC_STREAM_SERIALIZATION);
            assertThat(number(attribute, 8)).isEqualTo(1);
        }
        launched.add(launch);
        launched(launch);
    }

    /** For a driver that does something with it. */
    void launched(Launched launch) {}

    /** Of the calling thread's context. */
    int deviceOfContext() {
        return Objects.requireNonNull(devices.get(context));
    }

    private static int number(MemorySegment how, long offset) {
        return how.get(ValueLayout.JAVA_INT, offset);
    }

    @Override
    public void copyToDevice(long to, MemorySegment from, long bytes, long stream) {
        note("copyToDevice " + to + " " + bytes);
        assertThat(from.byteSize()).isGreaterThanOrEqualTo(bytes);
        requireStream(stream);
    }

    @Override
    public void copyFromDevice(MemorySegment to, long from, long bytes, long stream) {
        note("copyFromDevice " + from + " " + bytes);
        assertThat(to.byteSize()).isGreaterThanOrEqualTo(bytes);
        requireStream(stream);
    }

    @Override
    public void copyBetween(long to, long toContext, long from, long fromContext, long bytes, long stream) {
        note("copyBetween " + to + " of " + toContext + " from " + from + " of " + fromContext + " " + bytes);
        requireStream(stream);
    }

    @Override
    public void clear(long pointer, long bytes, long stream) {
        note("clear " + bytes);
        requireOurs(pointer, "memory");
        requireStream(stream);
    }

    @Override
    public void await(long stream) {
        note("await " + stream);
        if (stream != DEFAULT_STREAM) {
            requireStream(stream);
        }
    }

    @Override
    public void awaitEvent(long event) {
        note("awaitEvent " + event);
        requireOneOf(event, "event");
        assertThat(recorded).as("events that are waited for").contains(event);
    }

    @Override
    public long stream() {
        note("stream");
        return give("own stream");
    }

    @Override
    public void destroyStream(long stream) {
        note("destroyStream");
        takeBack(stream, "own stream");
    }

    @Override
    public boolean pin(MemorySegment memory) {
        note("pin " + memory.byteSize());
        return pinned.add(memory.address());
    }

    @Override
    public void unpin(MemorySegment memory) {
        note("unpin " + memory.byteSize());
        assertThat(pinned.remove(memory.address())).as("pinned").isTrue();
    }

    @Override
    public void usePeer(long other) {
        note("usePeer " + other);
        assertThat(devices).containsKey(other);
        assertThat(other).isNotEqualTo(context);
    }

    /** From now on it records graphs, or no longer. */
    public void recordsGraphs(boolean records) {
        recordsGraphs = records;
    }

    @Override
    public boolean recordsGraphs() {
        return recordsGraphs;
    }

    @Override
    public void beginRecording(long stream) {
        note("beginRecording " + stream);
        requireStream(stream);
    }

    @Override
    public long endRecording(long stream) {
        note("endRecording " + stream);
        requireStream(stream);
        return give("graph");
    }

    @Override
    public void launchGraph(long graph, long stream) {
        note("launchGraph " + graph);
        requireOurs(graph, "graph");
        requireStream(stream);
    }

    @Override
    public void destroyGraph(long graph) {
        note("destroyGraph");
        takeBack(graph, "graph");
    }

    @Override
    public long addressOfPinned(MemorySegment memory) {
        note("addressOfPinned");
        return memory.address();
    }

    @Override
    public boolean isRecording(long stream) {
        requireStream(stream);
        return recording;
    }

    /** From now on streams are recorded as graphs, or no longer. */
    public void record(boolean recording) {
        this.recording = recording;
    }

    @Override
    public long allocate(long bytes) {
        note("allocate " + bytes);
        long pointer = give("memory");
        next += bytes;
        return pointer;
    }

    @Override
    public void free(long pointer) {
        note("free");
        takeBack(pointer, "memory");
    }

    @Override
    public long event() {
        note("event");
        return give("event");
    }

    @Override
    public long timelessEvent() {
        note("timelessEvent");
        return give("event");
    }

    @Override
    public void destroyEvent(long event) {
        note("destroyEvent");
        recorded.remove(event);
        takeBack(event, "event");
    }

    @Override
    public void record(long event, long stream) {
        note("record " + event);
        requireOurs(event, "event");
        requireStream(stream);
        recorded.add(event);
    }

    @Override
    public void waitFor(long event, long stream) {
        note("waitFor " + event);
        requireOneOf(event, "event");
        requireStream(stream);
        assertThat(recorded).as("events that are waited for").contains(event);
    }

    @Override
    public long nanosBetween(long from, long to) {
        note("nanosBetween");
        requireOurs(from, "event");
        requireOurs(to, "event");
        return 42;
    }

    /** The library over this driver. */
    public CudaLibrary library() {
        return new CudaLibrary(this);
    }
}
