package pock;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/** Calls the native methods as Pock.kt does: the weights, the batches one after the other, then losses and a state. */
class Pock {
    native int nativePadding(ByteBuffer buffer);
    native int nativeInit(ByteBuffer memory, ByteBuffer weights);
    native int nativeSetRate(ByteBuffer memory, float rate);
    native int nativeSetSeed(ByteBuffer memory, long seed);
    native int nativeTrainStep(ByteBuffer memory, ByteBuffer input, ByteBuffer target, ByteBuffer loss);
    native int nativePredict(ByteBuffer memory, ByteBuffer input, ByteBuffer output);
    native int nativeSaveState(ByteBuffer memory, ByteBuffer state);
    native int nativeLoadState(ByteBuffer memory, ByteBuffer state);
    native void nativeReason(ByteBuffer memory, ByteBuffer text);
    native void nativeFree(ByteBuffer memory);

    ByteBuffer direct(int bytes) {
        ByteBuffer buffer = ByteBuffer.allocateDirect(bytes + 64);
        int start = nativePadding(buffer);
        return buffer.slice(start, bytes).order(ByteOrder.nativeOrder());
    }

    ByteBuffer holding(byte[] data) {
        return direct(data.length).put(data).rewind();
    }

    static byte[] bytes(ByteBuffer buffer) {
        byte[] data = new byte[buffer.capacity()];
        buffer.get(0, data);
        return data;
    }

    static void expect(int found, int code) {
        if (found != code) throw new IllegalStateException("code " + found + ", not " + code);
    }

    public static void main(String[] arguments) throws Exception {
        System.loadLibrary("pock");
        Path folder = Path.of(arguments[0]);
        int[] sizes = new int[4]; // of memory, an input, an output, a state
        for (int i = 0; i < 4; i++) sizes[i] = Integer.parseInt(arguments[i + 1]);
        Pock net = new Pock();
        ByteBuffer memory = net.direct(sizes[0]), output = net.direct(sizes[2]), loss = net.direct(4);
        ByteBuffer weights = net.holding(Files.readAllBytes(folder.resolve("weights.bin")));
        expect(net.nativeInit(memory, net.direct(1)), 2);
        expect(net.nativeInit(memory, weights), 0);
        expect(net.nativeSetRate(memory, Float.NaN), 4);
        ByteBuffer text = net.direct(512);
        net.nativeReason(memory, text);
        System.out.println(new String(bytes(text), "UTF-8").trim());
        expect(net.nativeSetRate(memory, 0.01f), 0);
        expect(net.nativeSetSeed(memory, (1L << 40) + 3), 0);
        ByteBuffer losses = ByteBuffer.allocate(4 * 20).order(ByteOrder.nativeOrder());
        ByteBuffer input = null;
        for (int step = 0; step < 20; step++) {
            input = net.holding(Files.readAllBytes(folder.resolve("input" + step)));
            ByteBuffer target = net.holding(Files.readAllBytes(folder.resolve("target" + step)));
            expect(net.nativeTrainStep(memory, input, net.direct(1), loss), 3);
            expect(net.nativeTrainStep(memory, input, target, loss), 0);
            losses.putFloat(loss.getFloat(0));
        }
        expect(net.nativePredict(memory, input, output), 0);
        ByteBuffer state = net.direct(sizes[3]);
        expect(net.nativeSaveState(memory, state), 0);
        expect(net.nativeLoadState(memory, net.holding(new byte[100])), 7);
        expect(net.nativeLoadState(memory, state), 0);
        net.nativeFree(memory);
        Files.write(folder.resolve("losses"), losses.array());
        Files.write(folder.resolve("output"), bytes(output));
        Files.write(folder.resolve("state"), bytes(state));
    }
}
