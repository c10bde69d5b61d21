package org.tornadomoe.spark;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import org.tornadomoe.quant.Int8Activations;

/**
 * A token as it is sent to an owner of experts: the owner's experts that the token goes to, their weights, and the
 * hidden state. The hidden state is sent as int8 with its scale if the owner would compute these same integers and this
 * scale from it. H hidden.
 *
 * @param experts their numbers at the owner
 * @param weights one weight per expert
 * @param hidden [H]; if it was sent as int8, scale times integers
 */
record SentToken(int[] experts, float[] weights, float[] hidden) {
    private static final byte INT8 = 1;
    private static final byte FLOAT = 0;

    /** The hidden state's bytes: its format, then scale and integers, or floats. */
    static byte[] hidden(float[] x, int from, int h, boolean int8) {
        if (int8) {
            byte[] q = new byte[h];
            float scale = Int8Activations.quantize(x, from, h, q, 0);
            byte[] again = new byte[h];
            // This holds for every scale except an infinite one and the smallest: 127 s / 127 equals s for each s that
            // is a float divided by 127.
            float scaleAgain = Int8Activations.quantize(times(q, scale), 0, h, again, 0);
            if (Float.floatToIntBits(scaleAgain) == Float.floatToIntBits(scale) && Arrays.equals(q, again)) {
                byte[] bytes = new byte[5 + h];
                buffer(bytes).put(INT8).putFloat(scale).put(q);
                return bytes;
            }
        }
        byte[] bytes = new byte[1 + 4 * h];
        buffer(bytes).put(FLOAT).asFloatBuffer().put(x, from, h);
        return bytes;
    }

    private static float[] times(byte[] q, float scale) {
        float[] x = new float[q.length];
        for (int i = 0; i < x.length; i++) {
            x[i] = q[i] * scale;
        }
        return x;
    }

    /** The bytes of the arrays' first pairs and of a hidden state. */
    static byte[] toBytes(int[] experts, float[] weights, int pairs, byte[] hidden) {
        byte[] bytes = new byte[4 + 8 * pairs + hidden.length];
        ByteBuffer into = buffer(bytes).putInt(pairs);
        for (int p = 0; p < pairs; p++) {
            into.putInt(experts[p]).putFloat(weights[p]);
        }
        into.put(hidden);
        return bytes;
    }

    static SentToken of(byte[] sent) {
        ByteBuffer bytes = buffer(sent);
        int pairs = bytes.getInt();
        int[] experts = new int[pairs];
        float[] weights = new float[pairs];
        for (int p = 0; p < pairs; p++) {
            experts[p] = bytes.getInt();
            weights[p] = bytes.getFloat();
        }
        if (bytes.get() == INT8) {
            float scale = bytes.getFloat();
            byte[] q = new byte[bytes.remaining()];
            bytes.get(q);
            return new SentToken(experts, weights, times(q, scale));
        }
        return new SentToken(experts, weights, floats(bytes));
    }

    /** An owner's sum, [H], as bytes. */
    static byte[] toBytes(float[] sum, int from, int h) {
        byte[] bytes = new byte[4 * h];
        buffer(bytes).asFloatBuffer().put(sum, from, h);
        return bytes;
    }

    static float[] floats(byte[] bytes) {
        return floats(buffer(bytes));
    }

    private static float[] floats(ByteBuffer bytes) {
        float[] values = new float[bytes.remaining() / Float.BYTES];
        bytes.asFloatBuffer().get(values);
        return values;
    }

    private static ByteBuffer buffer(byte[] bytes) {
        return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }
}
