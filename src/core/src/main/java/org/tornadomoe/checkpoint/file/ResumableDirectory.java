package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * A directory that a run writes file by file, and a later run of the same settings goes on with where that was stopped.
 * Meanwhile it has a folder with the settings, a lock, and a record beside each file that was written. It is complete
 * once it has a {@code config.json}.
 */
public final class ResumableDirectory implements AutoCloseable {
    private static final String STATE = ".moe-quantize";
    private static final String PLAN = "plan.json";

    private final Path out;
    private final Path state;
    private final FileChannel channel;

    /**
     * Begins a run, or goes on with one.
     *
     * @param out a directory that is there
     * @param plan the settings, of which a record is kept
     * @throws CheckpointException if it holds something else, or another run is writing to it
     */
    public ResumableDirectory(Path out, Map<String, Object> plan) throws IOException {
        this.out = out;
        state = out.resolve(STATE);
        requireOurs(plan);
        Files.createDirectories(state);
        channel = FileChannel.open(state.resolve("lock"), StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        try {
            lock();
            WholeFile.write(state.resolve(PLAN), JsonText.of(plan));
            removeLeftovers();
        } catch (RuntimeException | IOException | Error failure) {
            channel.close();
            throw failure;
        }
    }

    /** Where a file of that name goes. */
    public Path file(String name) {
        return out.resolve(name);
    }

    /** Where its record goes, which is written before the file is moved to its place. */
    public Path record(String name) {
        return state.resolve(name + ".json");
    }

    /** Whether an earlier run wrote that file. */
    public boolean has(String name, SafetensorsWriter expected) {
        return Files.exists(file(name)) && Files.exists(record(name)) && hasLayout(file(name), expected);
    }

    private static boolean hasLayout(Path file, SafetensorsWriter expected) {
        try (Safetensors there = Safetensors.open(file)) {
            Map<String, String> layout = new HashMap<>();
            for (String name : there.names()) {
                Tensor tensor = Objects.requireNonNull(there.find(name));
                layout.put(name, tensor.dtype() + Arrays.toString(tensor.shape()));
            }
            return layout.equals(expected.layout());
        } catch (CheckpointException e) {
            return false;
        }
    }

    /** Until the channel is closed. */
    private void lock() throws IOException {
        try {
            if (channel.tryLock() != null) {
                return;
            }
        } catch (OverlappingFileLockException e) {
            // the same answer
        }
        throw new CheckpointException(out, "another run is writing to it");
    }

    private void requireOurs(Map<String, Object> plan) throws IOException {
        if (Files.exists(state.resolve(PLAN))) {
            Map<String, @Nullable Object> earlier =
                    JsonFile.read(state.resolve(PLAN)).fields();
            for (Map.Entry<String, Object> setting : plan.entrySet()) {
                Object before = earlier.get(setting.getKey());
                if (!setting.getValue().equals(before)) {
                    throw new CheckpointException(
                            out,
                            "an earlier run with another " + setting.getKey() + " stopped here: expected "
                                    + setting.getValue() + ", got " + before + "; choose another directory");
                }
            }
            return;
        }
        try (Stream<Path> there = Files.list(out)) {
            List<String> names = there.map(p -> p.getFileName().toString())
                    .filter(name -> !name.equals(STATE))
                    .limit(3)
                    .toList();
            if (!names.isEmpty()) {
                throw new CheckpointException(
                        out,
                        "expected a directory that is new or empty, or where an earlier run stopped; it holds "
                                + String.join(", ", names));
            }
        }
    }

    /** What a run that was killed had begun to write. */
    private void removeLeftovers() throws IOException {
        try (Stream<Path> there = Files.list(out)) {
            for (Path file : there.toList()) {
                if (WholeFile.isLeftover(file)) {
                    Files.delete(file);
                }
            }
        }
    }

    /** Ends the run; what was there for a later one goes when the directory is complete. */
    @Override
    public void close() throws IOException {
        channel.close();
        if (Files.exists(out.resolve("config.json"))) {
            try (Stream<Path> left = Files.list(state)) {
                for (Path file : left.toList()) {
                    Files.delete(file);
                }
            }
            Files.delete(state);
        }
    }
}
