package org.tornadomoe.checkpoint.weights;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/** What matrices of several forms are run in together, and what becomes of an expert's parts. */
class Int8GridTest {
    private static final int H = 48;
    private static final int I = 36;
    private static final Path FILE = Path.of("model.safetensors");

    private static FusedMoeConfig config() {
        return FusedMoeConfig.builder()
                .numExperts(2)
                .expertsPerToken(1)
                .hiddenDim(H)
                .intermediateSize(I)
                .maxNumTokens(1)
                .build();
    }

    /** {@code channel}, {@code tensor}, {@code group 8}, {@code group 8 zeros} or {@code block 12 16}. */
    private static Int8Quantization quantization(String form) {
        List<String> words = List.of(form.split(" ", -1));
        return switch (words.getFirst()) {
            case "tensor" -> Int8Quantization.of(Int8Scheme.W8A8_TENSOR);
            case "channel" -> Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
            case "floats" -> Int8Quantization.of(Int8Scheme.W8A16_CHANNEL);
            case "group" ->
                Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                        .withGrid(new GroupShape(1, Integer.parseInt(words.get(1))))
                        .withZeroPoints(words.size() > 2);
            default ->
                Int8Quantization.of(Int8Scheme.W8A8_BLOCK)
                        .withGrid(new GroupShape(Integer.parseInt(words.get(1)), Integer.parseInt(words.get(2))));
        };
    }

    private static Matrix matrix(int rows, int cols, String form) {
        Matrix.FloatRow row = (r, into) -> {
            for (int c = 0; c < cols; c++) {
                into[c] = r + c + 1;
            }
        };
        return new Matrix.Decoded(
                rows, cols, FILE, "m", row, quantization(form), Matrix.CodeRow.NONE, Matrix.NumberRow.NONE);
    }

    private static Projections expert(String gate, String up, String down) {
        return new Projections(List.of(), matrix(I, H, gate), matrix(I, H, up), matrix(H, I, down), null, null, null);
    }

    @ParameterizedTest
    @CsvSource({
        "channel, channel, channel",
        "group 8 zeros, group 8 zeros, group 8 zeros",
        "group 8, group 12, group 4",
        "group 12 zeros, group 8, group 4 zeros",
        "group 8, group 12 zeros, group 4 zeros",
        "channel, tensor, floats",
        "channel, group 8, group 8",
        "group 8, tensor, group 8",
        "block 12 16, group 24, group 8",
        "block 12 16, channel, group 16",
        "block 12 16, block 12 16, block 12 16",
        "block 24 16, block 24 16, block 12 16",
    })
    void theFinestOfAll(String one, String other, String all) {
        List<Projections> experts = List.of(expert(one, one, one), expert(one, other, one));
        assertThat(Int8Grid.suiting(config(), false, experts)).isEqualTo(quantization(all));
    }

    @Test
    void interleavedRowsShareNoScale() {
        List<Projections> experts = List.of(expert("block 12 16", "block 12 16", "block 12 16"));
        assertThat(Int8Grid.suiting(config(), true, experts)).isEqualTo(quantization("block 1 16"));
    }

    private static float[] row(Matrix matrix, int row) {
        float[] values = new float[matrix.cols()];
        matrix.row(row, values);
        return values;
    }

    @Test
    void whatAnExpertGivesIsScaled() {
        Projections plain = expert("channel", "channel", "channel").withDownBias(new float[] {3, -4});
        assertThat(plain.scaled(1)).isSameAs(plain);
        Projections twice = plain.scaled(2);
        assertThat(twice.downBias()).containsExactly(6, -8);
        assertThat(plain.downBias()).containsExactly(3, -4);
        assertThat(row(twice.down(), 1)).startsWith(4, 6, 8);
        assertThat(row(twice.gate(), 1)).startsWith(2, 3, 4);
        assertThat(expert("channel", "channel", "channel").scaled(2).downBias()).isNull();
    }

    @Test
    void withoutAGateThereIsNoneBetweenTwoProjectionsEither() {
        Projections gated = expert("channel", "channel", "channel");
        Projections plain = new Projections(List.of(), gated.up(), gated.up(), gated.down(), null, null, null);
        Matrix into = matrix(H, 5, "channel");
        Matrix back = matrix(7, H, "channel");
        assertThat(Stream.of(gated, plain)
                        .map(expert -> expert.between(into, back).isGated()))
                .containsExactly(true, false);
        assertThat(gated.between(into, back).down().rows()).isEqualTo(7);
        assertThat(gated.between(into, back).up().cols()).isEqualTo(5);
    }

    private static final WeightQuantization.Group GROUPS = WeightQuantization.Group.of(8, 8, false);

    /** A part of a matrix with scales and zero points, past its end: the same numbers, and what isn't there is zero. */
    @ParameterizedTest
    @CsvSource({
        "1, 48, 0, 0, 12, 20",
        "1, 8, 0, 8, 36, 16",
        "1, 8, 3, 36, 6, 20",
        "1, 12, 0, 40, 7, 16",
        "4, 8, 8, 0, 12, 48",
        "12, 16, 6, 32, 30, 24",
        "36, 48, 30, 0, 12, 48",
        "1, 8, 40, 0, 4, 16",
        "1, 8, 0, 48, 4, 16",
    })
    void aWindowOfWholeNumbers(int rowsPerScale, int colsPerScale, int row, int col, int rows, int cols) {
        Matrix.Int8 whole = new Matrix.Int8(
                I,
                H,
                rowsPerScale,
                colsPerScale,
                (r, into, at) -> {
                    for (int c = 0; c < H; c++) {
                        into[at + c] = (byte) (7 * r + 3 * c);
                    }
                },
                (r, c) -> 0.5f + r + 0.25f * c,
                (r, c) -> 5 * r - 3 * c + 1,
                new Matrix.Stored(FILE, "m", "m.scales", GROUPS, null));
        MatrixView.Window window = new MatrixView.Window(whole, rows, cols, row, col);
        Matrix.Int8 int8 = requireNonNull(window.int8());
        float[] floats = new float[cols];
        byte[] values = new byte[cols + 1];
        float[] ofWhole = new float[H];
        for (int r = 0; r < rows; r++) {
            window.row(r, floats);
            int8.values().read(r, values, 1);
            if (row + r < I) {
                whole.row(row + r, ofWhole);
            }
            for (int c = 0; c < cols; c++) {
                float expected = row + r < I && col + c < H ? ofWhole[col + c] : 0;
                assertThat(floats[c]).isEqualTo(expected);
                assertThat((values[1 + c] - int8.zero(r, c)) * int8.scale(r, c)).isEqualTo(expected);
            }
        }
    }
}
