package org.tornadomoe.tornado.layout;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.quant.Int8Tensor;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class TiledWeightsTest {
    /**
     * The product as the tensor-core kernel makes it: lane by lane, register by register, from tiles and rows as they
     * lie.
     */
    @ParameterizedTest
    @CsvSource({"1,16,64", "2,16,32", "3,33,100", "1,7,5", "2,130,260"})
    void lanesFindTheirOperands(int experts, int rows, int cols) {
        SplittableRandom random = new SplittableRandom(rows + cols);
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor weights = Int8Tensor.allocate(arena, experts, rows, cols);
            byte[] row = new byte[cols];
            for (int r = 0; r < experts * rows; r++) {
                random.nextBytes(row);
                weights.setRow(r / rows, r % rows, row, 0, 1);
            }
            int chunks = RowTiles.chunks(cols);
            int tiles = RowTiles.tiles(rows);
            byte[] token = new byte[chunks * RowTiles.CHUNK];
            random.nextBytes(token);
            IntArray packed = new IntArray(Math.toIntExact(new TiledWeights().ints(experts, rows, cols, 0)));
            new TiledWeights().pack(weights, 0, packed);
            for (int e = 0; e < experts; e++) {
                for (int n = 0; n < tiles * RowTiles.ROWS; n++) {
                    int sum = 0;
                    for (int i = 0; i < chunks * 2 * 4; i++) {
                        int chunk = i / 8;
                        int step = i / 4 % 2;
                        int j = i % 4;
                        int tile = ((e * tiles + n / 16) * chunks + chunk) * 2 + step;
                        int lane = n % 8 * 4 + j;
                        for (int register = n % 16 / 8; register < 4; register += 2) {
                            int word = packed.get(tile * 128 + lane * 4 + register);
                            int at = chunk * 64 + 16 * j + 8 * step + register / 2 * 4;
                            for (int b = 0; b < 4; b++) {
                                sum += (byte) (word >> (8 * b)) * token[at + b];
                            }
                        }
                    }
                    int expected = 0;
                    for (int k = 0; k < cols && n < rows; k++) {
                        expected += weights.get(e, n, k) * token[k];
                    }
                    assertThat(sum).as("expert %d, row %d", e, n).isEqualTo(expected);
                }
            }
        }
    }

    @Test
    void thePtxIsMadeOfTheSourceThatLiesBesideIt() throws NoSuchAlgorithmException {
        byte[] hash = MessageDigest.getInstance("SHA-256").digest(resource("expert-gemm.cu"));
        String ptx = new String(resource("expert-gemm.ptx"), StandardCharsets.UTF_8);
        assertThat(ptx.lines().findFirst().orElseThrow())
                .as("make it anew, as the head of expert-gemm.cu says")
                .contains(HexFormat.of().formatHex(hash));
        assertThat(ptx).contains(".visible .entry expertGemm(");
    }

    private static byte[] resource(String name) {
        try (InputStream in = TiledWeights.class.getResourceAsStream("/org/tornadomoe/tornado/kernels/" + name)) {
            assertThat(in).as(name).isNotNull();
            return in.readAllBytes();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
