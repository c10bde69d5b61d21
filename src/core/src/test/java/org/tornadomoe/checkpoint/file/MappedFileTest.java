package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.LockSupport;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

@Timeout(60)
class MappedFileTest {
    @TempDir
    Path directory;

    @Test
    void aThreadThatIsInterruptedLeavesNothingMapped() throws IOException, InterruptedException {
        Path maps = Path.of("/proc/self/maps");
        assumeTrue(Files.exists(maps), "no /proc");
        Path file = Files.write(directory.resolve("file"), new byte[10_000]);
        Thread mapper = Thread.currentThread();
        AtomicBoolean through = new AtomicBoolean();
        Thread interrupter = Thread.ofPlatform().daemon().start(() -> {
            while (!through.get()) {
                mapper.interrupt();
                LockSupport.parkNanos(20_000);
            }
        });
        int kept = 0;
        try {
            for (int i = 0; i < 200; i++) {
                try (Arena arena = Arena.ofShared();
                        FileChannel channel = FileChannel.open(file)) {
                    assertThat(MappedFile.readOnly(channel, channel.size(), arena)
                                    .byteSize())
                            .isEqualTo(10_000);
                    kept += mapper.isInterrupted() ? 1 : 0;
                } catch (ClosedByInterruptException beforeItWasMapped) {
                    kept++;
                }
                Thread.interrupted();
            }
        } finally {
            through.set(true);
            while (interrupter.isAlive()) { // joining it, this thread might be interrupted once more
                Thread.onSpinWait();
            }
            Thread.interrupted();
        }
        assertThat(kept).as("times that it was interrupted").isPositive();
        assertThat(Files.readAllLines(maps)).noneMatch(line -> line.endsWith(file.toString()));
    }
}
