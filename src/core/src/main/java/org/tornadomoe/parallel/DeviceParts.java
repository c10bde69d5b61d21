package org.tornadomoe.parallel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.oracle.Selection;

/**
 * A layer's parts on their devices, each with its own thread and partial output. Callers take turns; parts may be
 * started meanwhile.
 */
final class DeviceParts implements AutoCloseable {
    private final List<Selection> ranks;
    private final long outputBytes;
    private final Arena arena = Arena.ofShared();

    /** In the order of the devices; changed only while no call runs. */
    private volatile List<Part> parts = List.of();

    private volatile boolean timed;

    /** A copy of hidden states that only the caller's thread may read. */
    private @Nullable MemorySegment input;

    /** One device's part of a layer; the partial output is [M, H]. */
    record Part(int rank, String device, MoeKernel kernel, DeviceThread thread, MemorySegment output) {
        /** Closes the kernel on its thread, and ends the thread. */
        void close() {
            try {
                thread.call(() -> {
                    kernel.close();
                    return kernel;
                });
            } finally {
                thread.close();
            }
        }
    }

    /** @param outputBytes bytes of the hidden states, and of the output, for the maximum number of tokens */
    DeviceParts(List<Selection> ranks, long outputBytes) {
        this.ranks = ranks;
        this.outputBytes = outputBytes;
    }

    List<Part> all() {
        return parts;
    }

    Part first() {
        return parts.getFirst();
    }

    /** Replaces all parts, by the same number. */
    void replace(List<Part> fresh) {
        parts = List.copyOf(fresh);
    }

    /** Makes the next device's part on its thread; false if {@code make} returned null. */
    boolean add(Callable<@Nullable MoeKernel> make) {
        Part part = start(parts.size(), arena.allocate(outputBytes, 64), make);
        if (part == null) {
            return false;
        }
        List<Part> all = new ArrayList<>(parts);
        all.add(part);
        replace(all);
        return true;
    }

    /** Makes a device's part on a new thread; null if {@code make} returned null. */
    @Nullable
    Part start(int rank, MemorySegment output, Callable<@Nullable MoeKernel> make) {
        int devices = ranks.size();
        String device = ranks.get(rank).device();
        DeviceThread thread = new DeviceThread("moe-" + rank + " " + device, devices);
        try {
            MoeKernel kernel = thread.call(make);
            if (kernel == null) {
                thread.close();
                return null;
            }
            return new Part(rank, device, kernel, thread, output);
        } catch (InsufficientMemoryException failure) {
            thread.close();
            throw failure;
        } catch (RuntimeException | Error failure) {
            thread.close();
            throw new MoeExecutionException(device + ": " + failure.getMessage(), failure);
        }
    }

    /**
     * Asks every part the same question in parallel and waits for all; returns the answers in the order of the parts.
     */
    <T> List<T> each(Function<Part, T> question) {
        List<Part> parts = this.parts;
        List<FutureTask<T>> tasks = new ArrayList<>();
        for (Part part : parts) {
            tasks.add(part.thread.begin(() -> question.apply(part)));
        }
        List<T> answers = new ArrayList<>();
        MoeExecutionException failed = null;
        for (int rank = 0; rank < parts.size(); rank++) {
            Part part = parts.get(rank);
            try {
                answers.add(part.thread.await(tasks.get(rank)));
            } catch (RuntimeException | Error failure) {
                MoeExecutionException named =
                        new MoeExecutionException(part.device + ": " + failure.getMessage(), failure);
                if (failed == null) {
                    failed = named;
                } else {
                    failed.addSuppressed(named);
                }
            }
        }
        if (failed != null) {
            throw failed;
        }
        return answers;
    }

    /** The hidden states in memory that the devices' threads may read; copies them if necessary. */
    MemorySegment readable(MemorySegment hidden, long bytes) {
        if (isAccessible(hidden)) {
            return hidden;
        }
        if (input == null) {
            input = arena.allocate(outputBytes, 64);
        }
        return input.copyFrom(hidden.asSlice(0, bytes));
    }

    /** Whether other threads than the caller's may use that memory. */
    boolean isAccessible(MemorySegment memory) {
        return memory.isAccessibleBy(first().thread.thread());
    }

    void timeStages() {
        timed = true;
        parts.forEach(part -> Profiled.timeStages(part.kernel));
    }

    boolean isTimed() {
        return timed;
    }

    /** For each stage of the last call, the time of the slowest device. */
    Map<String, Long> stageTimes() {
        return slowest(
                parts.stream().map(part -> Profiled.stageTimes(part.kernel)).toList());
    }

    /** For each kernel, the time of the slowest device. */
    Map<String, Long> profile(MemorySegment hidden, int tokens) {
        return slowest(each(part -> Profiled.profile(part.kernel, hidden, tokens)));
    }

    private static Map<String, Long> slowest(List<Map<String, Long>> times) {
        Map<String, Long> slowest = new LinkedHashMap<>();
        times.forEach(of -> of.forEach((name, nanos) -> slowest.merge(name, nanos, Math::max)));
        return slowest;
    }

    /** The devices, in human-readable form. */
    String device() {
        return parts.stream().map(Part::device).collect(Collectors.joining(", "));
    }

    /** Closes all parts, also those after one that fails. */
    @Override
    public void close() {
        Cleanup.all(
                () -> each(part -> {
                    part.kernel.close();
                    return part;
                }),
                () -> Cleanup.each(parts, part -> part.thread.close()),
                arena::close);
    }
}
