package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import org.junit.jupiter.api.Test;

class PrintableTest {
    @Test
    void whatSteersATerminalIsVisible() {
        assertThat(Printable.visible("a\u001b[2Jb\r\u0000\u007f\u009bc"))
                .isEqualTo("a\\u001b[2Jb\\u000d\\u0000\\u007f\\u009bc");
        assertThat(Printable.visible("a\u202eb\u2066c\u2028")).isEqualTo("a\\u202eb\\u2066c\\u2028");
        // The first and the last of each range, and what is beside them
        assertThat(Printable.visible("\u202a\u2069\u200e\u200f\u2029"))
                .isEqualTo("\\u202a\\u2069\\u200e\\u200f\\u2029");
        assertThat(Printable.visible("\u202f\u2065\u206a\u200d")).isEqualTo("\u202f\u2065\u206a\u200d");
        assertThat(Printable.visible("line\n\ttab äß漢字😀")).isEqualTo("line\n\ttab äß漢字😀");
    }

    @Test
    void longMessagesLoseTheirMiddle() {
        String name = "x".repeat(49_000);
        String message =
                new CheckpointException(Path.of("f"), "tensor '" + name + "': expected F32, got I8").getMessage();
        assertThat(message).hasSizeLessThan(2000).startsWith("f: tensor 'xxx").endsWith("xxx': expected F32, got I8");
        assertThat(message).contains(" ... (47434 characters) ... ");
        assertThat(Printable.message("y".repeat(2000))).hasSize(2000);
        assertThat(Printable.message(null)).isEqualTo("null");
    }

    @Test
    void messagesAboutFilesShowTheirNames() {
        assertThat(new CheckpointException(Path.of("a\u001bb"), "has no tensor '\u0007'"))
                .hasMessage("a\\u001bb: has no tensor '\\u0007'");
    }
}
