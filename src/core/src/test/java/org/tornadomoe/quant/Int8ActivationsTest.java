package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.Draw;
import org.tornadomoe.Draw.Property;

class Int8ActivationsTest {
    private static byte[] quantize(float... x) {
        byte[] q = new byte[x.length];
        Int8Activations.quantize(x, 0, x.length, q, 0);
        return q;
    }

    @Test
    void halvesAreRoundedAwayFromZero() {
        assertThat(quantize(127f, 0.5f, -0.5f, 1.5f, -1.5f, 2.5f, -2.5f, 126.5f, 0.49999997f))
                .containsExactly(127, 1, -1, 2, -2, 3, -3, 127, 0);
    }

    @Test
    void aTokenOfZerosHasATinyFiniteScale() {
        byte[] q = {9, 9, 9};
        assertThat(Int8Activations.quantize(new float[3], 0, 3, q, 0)).isEqualTo(1e-10f / 127f);
        assertThat(q).containsOnly(0);
    }

    @Test
    void aNonFiniteValueShowsInTheScaleOfItsTokenAlone() {
        float[] x = {1f, Float.NaN, 1f, 2f, Float.NEGATIVE_INFINITY, 3f};
        byte[] q = new byte[6];
        float[] scales = new float[3];
        Int8Activations.quantize(x, 3, 2, q, scales);
        assertThat(scales).containsExactly(Float.NaN, 2f / 127f, Float.POSITIVE_INFINITY);
        assertThat(q).containsExactly(0, 0, 64, 127, 0, 0);
    }

    @Test
    void rangesOutsideTheArraysAreRefusedBeforeAnythingIsWritten() {
        byte[] q = {9, 9};
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Activations.quantize(new float[4], 2, 3, q, 0));
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Activations.quantize(new float[4], 0, 3, q, 0));
        assertThat(q).containsOnly(9);
    }

    @Property
    void theLargestValueBecomes127AndTheErrorIsHalfAStep(Draw draw) {
        float[] x = new float[draw.between(1, 64)];
        for (int i = 0; i < x.length; i++) {
            x[i] = draw.between(-1e6f, 1e6f);
        }
        byte[] q = new byte[x.length];
        float scale = Int8Activations.quantize(x, 0, x.length, q, 0);
        assertThat(scale).isPositive().isFinite();
        for (int i = 0; i < x.length; i++) {
            assertThat(Math.abs(q[i])).isLessThanOrEqualTo(127);
            assertThat(Math.abs(q[i] * (double) scale - x[i])).isLessThanOrEqualTo(scale * 0.50002);
            if (Math.abs(x[i]) >= 1e-10f && Math.abs(x[i]) / scale > 126.999) {
                assertThat(Math.abs(q[i])).isEqualTo((byte) 127);
            }
        }
        assertThat(scale).isEqualTo(Int8Activations.scale(x, 0, x.length));
    }

    @Test
    void oneScaleRoundsHalvesToEvenAndClamps() {
        float[] x = {0.5f, 1.5f, -0.5f, -2.5f, 126.5f, 127.5f, -128.5f, -200f, 200f, Float.NaN, 0f};
        byte[] q = new byte[x.length];
        Int8Activations.quantize(x, x.length, 1f, q);
        assertThat(q).containsExactly(0, 2, 0, -2, 126, 127, -128, -128, 127, 0, 0);
        assertThat(Int8Activations.tensorScale(new float[] {1, -254, 3}, 3)).isEqualTo(2f);
        assertThat(Int8Activations.tensorScale(new float[4], 4)).isEqualTo(1e-10f);
        assertThat(Int8Activations.tensorScale(new float[0], 0)).isEqualTo(1e-10f);
    }

    @Test
    void groupsTruncateOrRoundToTheNearest() {
        // Two rows of a whole group and a short one; the last group is zeros.
        float[] x = {127f, 1.9f, -1.9f, 0.5f, 254f, -3f, -127f, 2.5f, 1.5f, 0.9f, 0f, 0f};
        byte[] q = new byte[x.length];
        float[] scales = new float[4];
        Int8Activations.quantizeGroups(x, 2, 6, 4, false, q, scales);
        assertThat(scales).containsExactly(1f, 2f, 1f, 1e-10f / 127f);
        assertThat(q).containsExactly(127, 1, -1, 0, 127, -1, -127, 2, 1, 0, 0, 0);
        Int8Activations.quantizeGroups(x, 2, 6, 4, true, q, scales);
        assertThat(q).containsExactly(127, 2, -2, 0, 127, -2, -127, 2, 2, 1, 0, 0);
    }

    @Test
    void aScaleDividesAndARangeMayLieAnywhere() {
        byte[] q = new byte[5];
        Int8Activations.quantize(new float[] {9, 1, 2, -3, 9}, 1, 3, 0.5f, q, 2);
        assertThat(q).containsExactly(0, 0, 2, 4, -6);
        byte[] groups = new byte[3];
        float[] scales = new float[3];
        Int8Activations.quantizeGroups(new float[] {2, -4, 0}, 1, 3, 1, true, groups, scales);
        assertThat(groups).containsExactly(127, -127, 0);
        assertThat(scales).containsExactly(2 / 127f, 4 / 127f, 1e-10f / 127f);
    }

    @ParameterizedTest
    @CsvSource({
        "2, 3, 5, 6, 2",
        "2, 3, 6, 5, 2",
        "2, 3, 6, 6, 1",
        "-1, 3, 6, 6, 2",
        "2, -3, 6, 6, 2",
        "65536, 65536, 6, 6, 2"
    })
    void arraysThatAreTooShortAreRefusedBeforeAnythingIsWritten(int tokens, int width, int x, int q, int scales) {
        byte[] values = new byte[q];
        float[] written = new float[scales];
        float[] ones = new float[x];
        Arrays.fill(ones, 1);
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Activations.quantize(ones, tokens, width, values, written));
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> Int8Activations.quantizeGroups(ones, tokens, width, 3, false, values, written));
        assertThat(values).containsOnly(0);
        assertThat(written).containsOnly(0);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Int8Activations.quantizeGroups(ones, 1, 1, 0, false, values, written))
                .withMessage("group: expected a positive number, got 0");
    }

    @Property
    void roundingIsThatOfDecimalArithmetic(Draw draw) {
        float x = draw.between(-127f, 127f);
        int expected = new BigDecimal(x).setScale(0, RoundingMode.HALF_UP).intValueExact();
        assertThat((int) Int8Activations.roundHalfAway(x)).isEqualTo(expected);
    }

    @Test
    void whatIsNextToAHalfIsRoundedByItsOwnSide() {
        for (float half = 0.5f; half < 127; half++) {
            int below = (int) (half - 0.5f);
            assertThat(rounded(Math.nextDown(half), half, Math.nextUp(half)))
                    .containsExactly(below, below + 1, below + 1);
            assertThat(rounded(-Math.nextDown(half), -half, -Math.nextUp(half)))
                    .containsExactly(-below, -below - 1, -below - 1);
        }
    }

    private static int[] rounded(float... x) {
        int[] integers = new int[x.length];
        for (int i = 0; i < x.length; i++) {
            integers[i] = Int8Activations.roundHalfAway(x[i]);
        }
        return integers;
    }
}
