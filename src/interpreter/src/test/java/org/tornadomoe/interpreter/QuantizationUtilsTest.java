package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;
import uk.ac.manchester.tornado.api.utils.QuantizationUtils;

class QuantizationUtilsTest {
    private static int pack(byte[] bytes) {
        return (bytes[0] & 0xff) | ((bytes[1] & 0xff) << 8) | ((bytes[2] & 0xff) << 16) | (bytes[3] << 24);
    }

    @Test
    void dotProductOfFour() {
        for (long seed = 0; seed < 1000; seed++) {
            SplittableRandom random = new SplittableRandom(seed);
            byte[] a = four(random);
            byte[] b = four(random);
            int c = random.nextInt();
            int expected = c;
            for (int i = 0; i < 4; i++) {
                expected += a[i] * b[i];
            }
            assertThat(QuantizationUtils.dp4a_packed(pack(a), pack(b), c))
                    .as("seed %d", seed)
                    .isEqualTo(expected);
            Int8Array first = Int8Array.concat(new Int8Array(3), Int8Array.fromArray(a));
            assertThat(QuantizationUtils.dp4a(first, 3, Int8Array.fromArray(b), 0, c))
                    .as("seed %d", seed)
                    .isEqualTo(expected);
            assertThat(QuantizationUtils.dp4a(first, 3, b, 0, c))
                    .as("seed %d", seed)
                    .isEqualTo(expected);
        }
    }

    /** One in eight is -128 or 127. */
    private static byte[] four(SplittableRandom random) {
        byte[] four = new byte[4];
        for (int i = 0; i < 4; i++) {
            int any = random.nextInt(-128, 128);
            four[i] = (byte) (random.nextInt(8) > 0 ? any : any < 0 ? -128 : 127);
        }
        return four;
    }

    @Test
    void partsOutsideOfTheArrays() {
        Int8Array four = new Int8Array(4);
        assertThatThrownBy(() -> QuantizationUtils.dp4a(four, 1, four, 0, 0))
                .isInstanceOf(IndexOutOfBoundsException.class);
    }

    @Test
    void scalesBack() {
        assertThat(QuantizationUtils.dequantizeFusedResult(-300, 0.5f, 0.25f)).isEqualTo(-37.5f);
    }
}
