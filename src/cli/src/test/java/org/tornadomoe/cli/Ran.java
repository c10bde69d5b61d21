package org.tornadomoe.cli;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import tools.jackson.jr.ob.JSON;

/** What a command did: exit status, standard output and standard error. */
record Ran(int status, String out, String err) {
    static final Path GOLDEN = Path.of("src/test/resources/golden");

    static Ran moe(Object... args) {
        return moe(Map.of(), args);
    }

    static Ran moe(Map<String, String> environment, Object... args) {
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        String[] texts = new String[args.length];
        for (int i = 0; i < args.length; i++) {
            texts[i] = args[i].toString();
        }
        int status = Moe.run(new PrintWriter(out), new PrintWriter(err), environment, texts);
        return new Ran(status, out.toString(), err.toString());
    }

    /** The one JSON object that standard output holds. */
    Map<String, Object> json() throws IOException {
        assertThat(out.lines()).hasSize(1);
        return JSON.std.mapFrom(out);
    }

    /** A number in that object. */
    double number(String field) throws IOException {
        return ((Number) requireNonNull(json().get(field), field)).doubleValue();
    }

    /** The objects of a list in that object. */
    List<Map<?, ?>> list(String field) throws IOException {
        List<?> list = (List<?>) requireNonNull(json().get(field), field);
        return list.stream().<Map<?, ?>>map(entry -> (Map<?, ?>) entry).toList();
    }

    /** Status 2, nothing on standard output, and one line on standard error that names all of these. */
    void assertRefused(String... named) {
        assertThat(this.status).as(err).isEqualTo(Moe.BAD_INPUT);
        assertThat(out).isEmpty();
        assertThat(err.lines()).hasSize(1);
        assertThat(err).contains(named).startsWith("moe").doesNotContain("should not have happened");
    }
}
