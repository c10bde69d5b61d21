package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class KernelCacheTest {
    @TempDir
    private Path folder;

    private final AtomicInteger compiled = new AtomicInteger();

    private byte[] get(KernelCache cache, String... key) {
        return cache.get(List.of(key), () -> {
            compiled.incrementAndGet();
            return String.join("+", key).getBytes(StandardCharsets.UTF_8);
        });
    }

    private List<Path> files() throws IOException {
        try (Stream<Path> all = Files.list(folder)) {
            return all.toList();
        }
    }

    /** Also by another cache of the same folder, as another process has. */
    @Test
    void whatWasCompiledIsKept() throws IOException {
        Path deep = folder.resolve("a/b");
        assertThat(get(new KernelCache(deep, 1000), "source", "option"))
                .asString()
                .isEqualTo("source+option");
        assertThat(get(new KernelCache(deep, 1000), "source", "option"))
                .asString()
                .isEqualTo("source+option");
        assertThat(compiled).hasValue(1);
        assertThat(get(new KernelCache(deep, 1000), "source", "other"))
                .asString()
                .isEqualTo("source+other");
        assertThat(get(new KernelCache(deep, 1000), "sourceoption")).asString().isEqualTo("sourceoption");
        assertThat(compiled).hasValue(3);
    }

    @Test
    void aBrokenFileIsMadeAnew() throws IOException {
        KernelCache cache = new KernelCache(folder, 1000);
        get(cache, "k");
        for (byte[] broken : List.of(new byte[0], new byte[20], new byte[40])) {
            Files.write(files().getFirst(), broken);
            assertThat(get(cache, "k")).asString().isEqualTo("k");
        }
        byte[] cut = Files.readAllBytes(files().getFirst());
        cut[cut.length - 1]++;
        Files.write(files().getFirst(), cut);
        assertThat(get(cache, "k")).asString().isEqualTo("k");
        assertThat(compiled).hasValue(5);
        get(cache, "k");
        assertThat(compiled).hasValue(5);
    }

    /** What was used longest ago goes. */
    @Test
    void itIsBounded() throws IOException {
        KernelCache cache = new KernelCache(folder, 2 * 33);
        get(cache, "a");
        age();
        get(cache, "b");
        age();
        get(cache, "a");
        get(cache, "c");
        assertThat(files()).hasSize(2);
        get(cache, "a");
        assertThat(compiled).hasValue(3);
        get(cache, "b");
        assertThat(compiled).hasValue(4);
    }

    private void age() throws IOException {
        for (Path file : files()) {
            Files.setLastModifiedTime(
                    file, FileTime.fromMillis(Files.getLastModifiedTime(file).toMillis() - 10_000));
        }
    }

    /** Nor does a folder that can't be written fail anything. */
    @Test
    void nothingIsKeptWhereNothingCanBe() throws IOException {
        Path file = Files.createFile(folder.resolve("file"));
        for (Path none : Stream.of(file, file.resolve("below")).toList()) {
            assertThat(get(new KernelCache(none, 1000), "k")).asString().isEqualTo("k");
        }
        assertThat(get(new KernelCache(null, 1000), "k")).asString().isEqualTo("k");
        assertThat(compiled).hasValue(3);
    }

    @Test
    void theUsersFolder() {
        String before = System.getProperty(KernelCache.PROPERTY);
        try {
            System.setProperty(KernelCache.PROPERTY, "off");
            assertThat(KernelCache.ofUser().folder()).isNull();
            System.setProperty(KernelCache.PROPERTY, folder.toString());
            assertThat(KernelCache.ofUser().folder()).isEqualTo(folder);
            System.clearProperty(KernelCache.PROPERTY);
            assertThat(KernelCache.ofUser().folder()).asString().endsWith("tornado-moe/kernels");
        } finally {
            if (before != null) {
                System.setProperty(KernelCache.PROPERTY, before);
            } else {
                System.clearProperty(KernelCache.PROPERTY);
            }
        }
    }
}
